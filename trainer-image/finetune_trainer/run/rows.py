"""The rows of a data file as a method sees them: how they become micro-batches, their loss and their metrics."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from finetune_api.method import Preference
from finetune_trainer.data.tokens import Conversation, Images, Pair, TokenCache
from finetune_trainer.step.batch import MicroBatch, conversation_batch, pair_batch, sent
from finetune_trainer.step.losses import preference_loss, preference_rewards, preferred_nll, sft_loss
from finetune_trainer.step.pixels import Pixels
from finetune_trainer.step.recipe import Level

See: TypeAlias = Callable[[Images], Pixels]
Lengths: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Measured:
    """Values by their names in the metric table, still on the device where they were computed."""

    names: tuple[str, ...]
    values: Tensor
    """fp64 [names]."""

    @staticmethod
    def of(values: dict[str, Tensor]) -> Measured:
        """From scalars by name."""
        return Measured(tuple(values), torch.stack([value.double() for value in values.values()]))

    def read(self) -> dict[str, float]:
        """The numbers, in one transfer; waits for the device."""
        return dict(zip(self.names, self.values.tolist(), strict=True))


@dataclass(frozen=True)
class PreferenceRows:
    """Pairs under DPO or a relative. Sums of log-probabilities come as [2 * rows], of each row the preferred first."""

    cache: TokenCache
    objective: Preference
    reference: Tensor | None
    """Sums under the starting weights, fp64 [all rows, 2]; None where the objective compares with none."""
    see: See | None = None
    """Makes pixels of images, where there are any."""

    @cached_property
    def lengths(self) -> Lengths:
        """Tokens of both answers of every row, int64 [all rows, 2]."""
        return np.diff(self.cache.offsets).reshape(-1, 3)[:, 1:]

    @property
    def pairs(self) -> bool:
        """A row has two sequences."""
        return True

    def widths(self, level: Level) -> Lengths:
        """Tokens of each row in a pass, int64 [all rows]; where a pass holds one sequence, those of its longest."""
        return self._widths[level]

    @cached_property
    def _widths(self) -> dict[Level, Lengths]:
        prompt, preferred, non_preferred = np.diff(self.cache.offsets).reshape(-1, 3).T
        return {
            Level.SHARED: prompt + preferred + non_preferred,
            Level.PACKED: 2 * prompt + preferred + non_preferred,
            Level.SINGLE: prompt + np.maximum(preferred, non_preferred),
        }

    def batch(self, rows: Sequence[int], level: Level) -> MicroBatch:
        """The micro-batch of `rows`."""
        pairs = [self.cache.pair(row) for row in rows]
        return pair_batch(pairs, level, _seen(pairs, self.see))

    def shortened(self, row: int, longest: int, level: Level) -> MicroBatch:
        """The row alone, cut to `longest` tokens a sequence, at least 2; the prompt goes before the answers do.

        Images, whose tokens may be cut in the middle, are left out: what they take comes on top.
        """
        pair = self.cache.pair(row)
        prompt = pair.prompt[: max(1, longest - max(len(pair.preferred), len(pair.non_preferred)))]
        room = longest - len(prompt)
        cut = replace(pair, prompt=prompt, preferred=pair.preferred[:room], non_preferred=pair.non_preferred[:room])
        return pair_batch([cut], level)

    def units(self, rows: Sequence[int]) -> int:
        """What the sum of losses is divided by: pairs, whatever they weigh."""
        return len(rows)

    def loss(self, sums: Tensor, rows: Sequence[int]) -> Tensor:
        """Sum of the losses of `rows`, each times its weight, fp64."""
        policy, reference, lengths = self._terms(sums, rows)
        losses = preference_loss(policy, reference, lengths, self.objective)
        return (_weights(self.cache, rows, sums) * losses).sum()

    def metrics(self, sums: Tensor, rows: Sequence[int]) -> Measured:
        """The metric table's values over `rows`: the loss is the objective with its weights, the rest knows none."""
        policy, reference, lengths = self._terms(sums, rows)
        rewards = preference_rewards(policy, reference, lengths, self.objective)
        values = {
            "loss": self.loss(sums, rows) / self.units(rows),
            "rewards/accuracies": (rewards[:, 0] > rewards[:, 1]).double().mean(),
            "rewards/margins": (rewards[:, 0] - rewards[:, 1]).mean(),
            "rewards/chosen": rewards[:, 0].mean(),
            "rewards/rejected": rewards[:, 1].mean(),
            "logps/chosen": policy[:, 0].mean(),
            "logps/rejected": policy[:, 1].mean(),
        }
        if reference is not None:
            values |= _divergence(reference - policy, lengths)
        if self.objective.rpo_alpha > 0:
            values["nll"] = preferred_nll(policy, lengths).mean()
        return Measured.of(values)

    def _terms(self, sums: Tensor, rows: Sequence[int]) -> tuple[Tensor, Tensor | None, Tensor]:
        """Policy, reference and lengths of `rows`, each [rows, 2], on the device of `sums`."""
        reference = None if self.reference is None else sent(self.reference[torch.as_tensor(rows)], sums.device)
        return sums.view(-1, 2), reference, sent(torch.from_numpy(self.lengths[list(rows)]), sums.device)


def _divergence(divergence: Tensor, lengths: Tensor) -> dict[str, Tensor]:
    """Estimates of KL(reference, policy) from reference - policy, [rows, 2], on answers of these lengths."""
    return {
        "kl": divergence.mean(),
        "kl/chosen": divergence[:, 0].mean(),
        "kl/rejected": divergence[:, 1].mean(),
        "kl_per_token": divergence.sum() / lengths.sum(),
    }


@dataclass(frozen=True)
class ConversationRows:
    """Conversations under SFT. Sums of log-probabilities come as [rows]."""

    cache: TokenCache
    see: See | None = None
    """Makes pixels of images, where there are any."""

    @cached_property
    def target_counts(self) -> Lengths:
        """Target tokens of every row, int64 [all rows]."""
        assert self.cache.targets is not None
        return np.add.reduceat(self.cache.targets, self.cache.offsets[:-1], dtype=np.int64)

    @property
    def pairs(self) -> bool:
        """A row has one sequence."""
        return False

    def widths(self, level: Level) -> Lengths:
        """Tokens of each row in a pass, int64 [all rows]; the same on every level."""
        return self._widths

    @cached_property
    def _widths(self) -> Lengths:
        return self.cache.lengths

    def batch(self, rows: Sequence[int], level: Level) -> MicroBatch:
        """The micro-batch of `rows`."""
        conversations = [self.cache.conversation(row) for row in rows]
        return conversation_batch(conversations, level, _seen(conversations, self.see))

    def shortened(self, row: int, longest: int, level: Level) -> MicroBatch:
        """The row alone, cut to its first `longest` tokens, all of them targets: the most that they can cost.

        Images are left out, as of a pair.
        """
        whole = self.cache.conversation(row)
        tokens = whole.tokens[:longest]
        return conversation_batch([replace(whole, tokens=tokens, targets=np.arange(len(tokens)) > 0)], level)

    def units(self, rows: Sequence[int]) -> int:
        """What the sum of losses is divided by: target tokens, whatever their rows weigh."""
        return int(self.target_counts[list(rows)].sum())

    def loss(self, sums: Tensor, rows: Sequence[int]) -> Tensor:
        """Sum of the losses of `rows`, each times its weight, fp64."""
        return (_weights(self.cache, rows, sums) * sft_loss(sums)).sum()

    def metrics(self, sums: Tensor, rows: Sequence[int]) -> Measured:
        """The metric table's values over `rows`."""
        return Measured.of({"loss": self.loss(sums, rows) / self.units(rows)})


def _seen(rows: Sequence[Pair] | Sequence[Conversation], see: See | None) -> list[Pixels | None] | None:
    """The images of each row."""
    return [see(row.images) if row.images else None for row in rows] if see else None


def _weights(cache: TokenCache, rows: Sequence[int], sums: Tensor) -> Tensor:
    return sent(torch.from_numpy(cache.weights[list(rows)]), sums.device)


MethodRows: TypeAlias = PreferenceRows | ConversationRows
