"""The training loop: steps, and what is due after each of them."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from finetune_api.metrics import checkpoint_values
from finetune_api.report import FailureCode, WarningCode
from finetune_api.schedule import spaced
from finetune_api.status import CheckpointType
from finetune_api.trainer import TrainerConfig
from finetune_trainer.failures import failed
from finetune_trainer.out.metrics import MetricsLog
from finetune_trainer.run.evaluate import evaluate
from finetune_trainer.run.optim import clip, learning_rate, make_adamw, set_learning_rate
from finetune_trainer.run.start import Work
from finetune_trainer.run.telling import Teller
from finetune_trainer.step.recipe import Recipe

log = logging.getLogger(__name__)

MOST_SKIPPED, MOST_SKIPPED_IN_A_ROW = 10, 3


@dataclass(frozen=True, slots=True)
class Position:
    """How far a run is. Frozen, so that a saved position and the running one cannot mix."""

    step: int = 0
    """Optimiser steps done."""
    settled: bool = False
    """Whether what is due after that step, evaluation and checkpoint, is done too."""
    tokens: int = 0
    """Tokens trained on."""
    skipped: int = 0
    """Steps without an update because the gradient was not finite."""
    skipped_in_a_row: int = 0
    evaluation: dict[str, float] = field(default_factory=dict)
    """The newest evaluation, by metric name."""


class Loop:
    """Training from `position` to the last step."""

    def __init__(
        self, config: TrainerConfig, work: Work, metrics: MetricsLog, teller: Teller, before_each: Callable[[], None]
    ) -> None:
        """`before_each` is called before each micro-batch and may raise to end the loop between two of them."""
        self.position = Position()
        self.parameters = work.policy.trainable
        self.optimizer = make_adamw(self.parameters, config.hyperparameters.weight_decay)
        self.metrics = metrics
        self.teller = teller
        self._config, self._work, self._before_each = config, work, before_each
        total = work.plan.total_steps
        evaluations = config.evaluation.n_evals if work.validation else 0
        self._evaluations = spaced(evaluations, total) | {0} if evaluations else frozenset[int]()
        self._checkpoints = spaced(config.checkpointing.n_checkpoints, total) - {total}
        self._row_tokens = work.rows.cache.lengths

    @property
    def recipe(self) -> Recipe:
        """How micro-batches are computed at present."""
        return self._work.fitter.recipe

    def run(self, after_each: Callable[[], None]) -> None:
        """All steps that are left; `after_each` is called when a step and what was due after it are done.

        Raises:
            RunFailed: Diverged, OutOfMemory, or what `before_each` raises.
        """
        self.teller.begins(self.position.step, self.position.tokens)
        self._settle()
        while self.position.step < self._work.plan.total_steps:
            self._step()
            self._settle()
            after_each()

    def _step(self) -> None:
        """One optimiser step: gradients over all its micro-batches, clip, update, one line of metrics."""
        hyper, plan, position = self._config.hyperparameters, self._work.plan, self.position
        rate = learning_rate(position.step, plan.total_steps, hyper)
        rows = plan.step(position.step)
        seed = _seed_of(hyper.seed, position.step)
        sums = self._work.fitter.gradients(self._work.rows, rows, seed, self._before_each)
        norm = clip(self.parameters, hyper.max_grad_norm)
        update = math.isfinite(norm)
        if update:
            set_learning_rate(self.optimizer, rate)
            self.optimizer.step()
        self.optimizer.zero_grad()
        tokens = int(self._row_tokens[list(rows)].sum())
        self.position = _after(position, tokens, update)
        values = self._work.rows.metrics(sums, rows).read() | {"grad_norm": norm, "learning_rate": rate}
        self._tell_step(values, tokens)
        if not update:
            self._skipped(rows, rate)

    def _tell_step(self, values: dict[str, float], tokens: int) -> None:
        position = self.position
        values |= {
            "epoch": self.teller.epoch(position.step),
            "num_tokens": position.tokens,
            "tokens_per_second": self.teller.speed(tokens),
        }
        self.metrics.append(position.step, "train", values)
        self.teller.stepped(position.step, position.tokens, values)

    def _skipped(self, rows: tuple[int, ...], rate: float) -> None:
        """Say which rows the step held, and give up when it happens too often."""
        position = self.position
        lines = sorted(self._work.rows.cache.lines[list(rows)].tolist())
        log.warning("step %d skipped: its gradient is not finite; lines of trainingFile: %s", position.step, lines)
        message = f"{position.skipped} steps changed nothing because their gradients were not finite"
        self.teller.warn(WarningCode.STEP_SKIPPED, message, position.step)
        if position.skipped >= MOST_SKIPPED or position.skipped_in_a_row >= MOST_SKIPPED_IN_A_ROW:
            raise failed(FailureCode.DIVERGED, step=position.step, learningRate=f"{rate:g}")

    def _settle(self) -> None:
        """What is due after the current step: an evaluation, then a checkpoint that carries it."""
        if self.position.settled:
            return
        step = self.position.step
        if step in self._evaluations:
            self._evaluate()
        if step in self._checkpoints:
            self.publish(CheckpointType.INTERMEDIATE)
        self.position = replace(self.position, settled=True)
        self.teller.begins(step, self.position.tokens)

    def _evaluate(self) -> None:
        validation = self._work.validation
        assert validation is not None
        values = evaluate(self._work.fitter, validation, self._before_each)
        self.metrics.append(self.position.step, "eval", values)
        self.position = replace(self.position, evaluation=values)
        self.teller.evaluated(values)

    def publish(self, kind: CheckpointType) -> None:
        """Publish the current weights."""
        published = self._work.publisher.publish(
            self.position.step, kind, checkpoint_values(self.position.evaluation), self._work.policy.save
        )
        self.teller.published(published)


def _after(position: Position, tokens: int, updated: bool) -> Position:
    return replace(
        position,
        step=position.step + 1,
        settled=False,
        tokens=position.tokens + tokens,
        skipped=position.skipped + (not updated),
        skipped_in_a_row=0 if updated else position.skipped_in_a_row + 1,
    )


def _seed_of(seed: int, step: int) -> int:
    """Seed of dropout in a step: a function of the step alone, so that a resumed run needs no generator's state."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{step}".encode()).digest()[:7], "little")
