"""One pass over the validation rows, without dropout and without gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from finetune_trainer.run.rows import MethodRows
from finetune_trainer.step.model import Policy
from finetune_trainer.step.packing import MicroBatchRows


@torch.no_grad()
def evaluate(
    policy: Policy, rows: MethodRows, batches: Sequence[MicroBatchRows], before_each: Callable[[], None]
) -> dict[str, float]:
    """The metric table's values over all rows in `batches`; `before_each` may raise to end it."""
    policy.training(False)
    parts = []
    for batch in batches:
        before_each()
        parts.append(policy.score(rows.batch(batch)))
    return rows.metrics(torch.cat(parts), [row for batch in batches for row in batch]).read()
