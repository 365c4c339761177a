"""The rows of a data file as a method sees them: how they become micro-batches, their loss and their metrics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from finetune_trainer.data.tokens import CacheKind, TokenCache
from finetune_trainer.step.batch import MicroBatch, conversation_batch, pair_batch
from finetune_trainer.step.losses import dpo_loss, dpo_rewards, sft_loss
from finetune_trainer.step.recipe import Level

Lengths: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True)
class PreferenceRows:
    """Pairs under DPO. Sums of log-probabilities come as [2 * rows], of each row the preferred answer first."""

    cache: TokenCache
    beta: float
    reference: Tensor
    """Sums under the starting weights, fp64 [all rows, 2]."""
    level: Level

    @cached_property
    def lengths(self) -> Lengths:
        """Tokens of both answers of every row, int64 [all rows, 2]."""
        return np.diff(self.cache.offsets).reshape(-1, 3)[:, 1:]

    def batch(self, rows: Sequence[int]) -> MicroBatch:
        """The micro-batch of `rows`."""
        return pair_batch([self.cache.pair(row) for row in rows], self.level)

    def units(self, rows: Sequence[int]) -> int:
        """What the sum of losses is divided by: pairs."""
        return len(rows)

    def loss(self, sums: Tensor, rows: Sequence[int]) -> Tensor:
        """Sum of the losses of `rows`, fp64."""
        return dpo_loss(sums.view(-1, 2), self._reference(sums, rows), self.beta).sum()

    def metrics(self, sums: Tensor, rows: Sequence[int]) -> dict[str, float]:
        """The metric table's values over `rows`."""
        policy = sums.view(-1, 2)
        reference = self._reference(sums, rows)
        rewards = dpo_rewards(policy, reference, self.beta)
        chosen, rejected = rewards.mean(dim=0).tolist()
        divergence = reference - policy
        values = {
            "loss": dpo_loss(policy, reference, self.beta).mean(),
            "rewards/accuracies": (rewards[:, 0] > rewards[:, 1]).double().mean(),
            "rewards/margins": (rewards[:, 0] - rewards[:, 1]).mean(),
            "rewards/chosen": chosen,
            "rewards/rejected": rejected,
            "logps/chosen": policy[:, 0].mean(),
            "logps/rejected": policy[:, 1].mean(),
            "kl": divergence.mean(),
            "kl/chosen": divergence[:, 0].mean(),
            "kl/rejected": divergence[:, 1].mean(),
            "kl_per_token": divergence.sum() / int(self.lengths[list(rows)].sum()),
        }
        return {name: float(value) for name, value in values.items()}

    def _reference(self, sums: Tensor, rows: Sequence[int]) -> Tensor:
        return self.reference[torch.as_tensor(rows)].to(sums.device)


@dataclass(frozen=True)
class ConversationRows:
    """Conversations under SFT. Sums of log-probabilities come as [rows]."""

    cache: TokenCache
    level: Level

    @cached_property
    def target_counts(self) -> Lengths:
        """Target tokens of every row, int64 [all rows]."""
        assert self.cache.targets is not None
        return np.add.reduceat(self.cache.targets, self.cache.offsets[:-1], dtype=np.int64)

    def batch(self, rows: Sequence[int]) -> MicroBatch:
        """The micro-batch of `rows`."""
        return conversation_batch([self.cache.conversation(row) for row in rows], self.level)

    def units(self, rows: Sequence[int]) -> int:
        """What the sum of losses is divided by: target tokens."""
        return int(self.target_counts[list(rows)].sum())

    def loss(self, sums: Tensor, rows: Sequence[int]) -> Tensor:
        """Sum of the losses of `rows`, fp64."""
        return sft_loss(sums).sum()

    def metrics(self, sums: Tensor, rows: Sequence[int]) -> dict[str, float]:
        """The metric table's values over `rows`."""
        return {"loss": float(sft_loss(sums).sum()) / self.units(rows)}


MethodRows: TypeAlias = PreferenceRows | ConversationRows


def row_widths(cache: TokenCache, level: Level) -> Lengths:
    """Tokens of each row alone in a pass, int64 [rows]; where a pass holds one sequence, those of its longest."""
    if cache.kind is CacheKind.CONVERSATION:
        return cache.lengths
    prompt, preferred, non_preferred = np.diff(cache.offsets).reshape(-1, 3).T
    match level:
        case Level.SHARED:
            return prompt + preferred + non_preferred
        case Level.PACKED:
            return 2 * prompt + preferred + non_preferred
        case Level.SINGLE:
            return prompt + np.maximum(preferred, non_preferred)
