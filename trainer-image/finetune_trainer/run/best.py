"""Which evaluation is the best so far, and when the evaluations have stopped improving.

Pure values: an evaluation comes in, the next `Best` comes out. The two questions are not the same. The best is the best
of all; early stopping looks only at what comes after the warm-up, and an evaluation that is better by less than
minDelta does not count as an improvement for it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from finetune_api.evaluation import EarlyStopping, Evaluation, EvaluationMetric


@dataclass(frozen=True, slots=True)
class Best:
    """What the evaluations so far come to; the baseline at step 0 is none of them."""

    step: int = 0
    """Step of the best one; 0 before the first."""
    value: float | None = None
    """The metric's value there."""
    improvement: float | None = None
    """Value of the latest one that was an improvement for early stopping."""
    seen: int = 0
    """How many there were."""
    waited: int = 0
    """How many in a row were no improvement."""


@dataclass(frozen=True, slots=True)
class Judge:
    """Compares evaluations, as `evaluation.earlyStopping` says; without it by the lowest loss."""

    early_stopping: EarlyStopping | None

    @staticmethod
    def of(evaluation: Evaluation) -> Judge:
        """The judge that a configuration asks for."""
        return Judge(evaluation.early_stopping)

    @property
    def metric(self) -> EvaluationMetric:
        """What is compared."""
        return self.early_stopping.metric if self.early_stopping else EvaluationMetric.LOSS

    def after(self, best: Best, step: int, value: float) -> Best:
        """`best` after the evaluation at `step` gave `value`; of equals the first is best, and NaN never is."""
        if self._is_better(value, best.value, 0.0):
            best = replace(best, step=step, value=value)
        best = replace(best, seen=best.seen + 1)
        early = self.early_stopping
        if early is None or best.seen <= early.warmup_evals:
            return best
        if self._is_better(value, best.improvement, early.min_delta):
            return replace(best, improvement=value, waited=0)
        return replace(best, waited=best.waited + 1)

    def is_enough(self, best: Best) -> bool:
        """Whether training is to end."""
        return self.early_stopping is not None and best.waited >= self.early_stopping.patience

    def _is_better(self, value: float, than: float | None, by: float) -> bool:
        if than is None or not math.isfinite(value):
            return math.isfinite(value)
        higher = self.early_stopping is not None and self.early_stopping.higher_is_better
        return (value - than if higher else than - value) > by
