"""One pass over the validation rows, without dropout and without gradients."""

from __future__ import annotations

from collections.abc import Callable

import torch

from finetune_trainer.run.start import Validation
from finetune_trainer.step.fitting import Fitter


def evaluate(fitter: Fitter, validation: Validation, before_each: Callable[[], None]) -> dict[str, float]:
    """The metric table's values over all rows; `before_each` is called before each micro-batch and may raise."""
    rows = validation.rows
    sums = torch.cat([fitter.scores(rows, group, before_each) for group in validation.groups])
    return rows.metrics(sums, [row for group in validation.groups for row in group]).read()
