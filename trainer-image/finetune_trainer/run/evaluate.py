"""One pass over the validation rows, without dropout and without gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from finetune_trainer.run.samples import Samples, Scores
from finetune_trainer.run.start import Validation
from finetune_trainer.step.fitting import Fitter


@dataclass(frozen=True, slots=True)
class Evaluated:
    """What an evaluation has measured."""

    values: dict[str, float]
    """The metric table's values over all rows."""
    samples: Scores
    """Scores of the rows that the report shows."""


def evaluate(fitter: Fitter, validation: Validation, samples: Samples, before_each: Callable[[], None]) -> Evaluated:
    """Measure all validation rows, `samples` among them; `before_each` is called before each micro-batch, may raise."""
    rows = validation.rows
    sums = torch.cat([fitter.scores(rows, group, before_each) for group in validation.groups])
    values = rows.metrics(sums, [row for group in validation.groups for row in group]).read()
    return Evaluated(values, samples.among(sums))
