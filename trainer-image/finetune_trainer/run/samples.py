"""The handful of rows that the report shows: the same ones whenever they are scored, before training and after it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor

from finetune_trainer.run.rows import MethodRows
from finetune_trainer.step.fitting import Fitter

MOST = 10

Scores: TypeAlias = tuple[float, ...]
"""Sums of log-probabilities, one for each sequence of each row: of a pair the preferred answer first."""


@dataclass(frozen=True, slots=True)
class Samples:
    """Rows at equal distances in their file."""

    rows: MethodRows
    held_out: bool
    """They are validation rows; else rows that are trained on."""

    @property
    def chosen(self) -> list[int]:
        """Which rows they are, at most 10."""
        count = len(self.rows.cache)
        some = min(count, MOST)
        return [k * count // some for k in range(some)]

    def score(self, fitter: Fitter, before_each: Callable[[], None]) -> Scores:
        """Their scores by a pass of their own; `before_each` is called before each micro-batch and may raise."""
        return tuple(fitter.scores(self.rows, self.chosen, before_each).tolist())

    def among(self, sums: Tensor) -> Scores:
        """Their scores among those of all rows, fp64 [rows] or [2 * rows]."""
        return tuple(sums.view(len(self.rows.cache), -1)[self.chosen].flatten().tolist())
