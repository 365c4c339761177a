"""Gradients of one optimiser step, summed over its micro-batches so that the split changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from finetune_trainer.step.batch import MicroBatch
from finetune_trainer.step.model import Policy, in_memory
from finetune_trainer.step.packing import MicroBatchRows


class Objective(Protocol):
    """What a method makes of rows."""

    def batch(self, rows: Sequence[int]) -> MicroBatch:
        """Their tokens."""

    def units(self, rows: Sequence[int]) -> int:
        """What the sum of losses is divided by."""

    def loss(self, sums: Tensor, rows: Sequence[int]) -> Tensor:
        """Sum of their losses, from the sums of log-probabilities of their sequences."""


def accumulate(
    policy: Policy, objective: Objective, micro_batches: Sequence[MicroBatchRows], before_each: Callable[[], None]
) -> Tensor:
    """Add the gradient of (sum of losses over all rows) / (units of all rows) to the trainable parameters.

    Args:
        before_each: called before each micro-batch; what it raises ends the step, its gradients half summed.

    Returns:
        Sums of log-probabilities of every sequence in the order of the micro-batches, fp64, on the device.

    Raises:
        RunFailed: OutOfMemory.
    """
    policy.training(True)
    units = sum(objective.units(rows) for rows in micro_batches)
    parts = []
    for rows in micro_batches:
        before_each()
        batch = objective.batch(rows)
        sums = policy.score(batch)
        with in_memory(batch, policy.device):
            (objective.loss(sums, rows) / units).backward()
        parts.append(sums.detach())
    return torch.cat(parts)
