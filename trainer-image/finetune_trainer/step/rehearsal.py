"""Before the first step: does the most expensive micro-batch fit into memory, and if not, by which recipe it does.

An hour into training is a bad moment to learn that the longest row does not fit. A rehearsal is a real forward and
backward pass on the real weights that leaves no trace: no gradient, no random number, no change of a weight.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from finetune_api.failures import FailureCode
from finetune_trainer.failures import RunFailed, failed
from finetune_trainer.step.batch import MicroBatch
from finetune_trainer.step.gradient import Table, backward
from finetune_trainer.step.memory import free, measurable, named, none_can_go_on, peak, random_state_kept, within
from finetune_trainer.step.model import Policy
from finetune_trainer.step.packing import MicroBatchRows
from finetune_trainer.step.recipe import CPU_TOKENS, OPTIMIZER_STATES, ROW_ALONE, SHORTEST, Level, Recipe

MEASURED_TOKENS = 6144, 2048
"""Sizes of the two micro-batches from which memory per token is measured on a GPU; what only the first pass of all
takes counts for the larger one, so that the estimate errs on the safe side."""
SHARED_MEASURED_TOKENS = 2048, 512
"""The same where processes share the weights: so small that they fit, since none may run out of memory."""
MOST_GPU_TOKENS = 65536
"""More than this makes no step faster."""
SHARE = 0.85
"""Of the memory that is free, how much micro-batches are planned to take: the rest is for fragments."""
ROUNDED_TO = 1024
"""The measured size is rounded down to a multiple, so that a little less free memory gives the same plan."""
MOST_BEGINNINGS = 64
MOST_TRIES = 8
"""Tries by which the longest row that fits is found, to 1/256 of the row that does not."""

Widths: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """Tries recipes on the rows of training, with the starting weights and before there is an optimizer."""

    policy: Policy
    table: Table
    batch_size: int
    """Most rows of a micro-batch."""
    packing: bool
    """More than one row may share a micro-batch."""

    def plan(self, level: Level) -> Recipe:
        """The fastest recipe on `level` by which every row fits.

        Raises:
            RunFailed: OutOfMemory, ModelTooLarge: the longest row does not fit at all.
        """
        with _as_in_training(self.policy):
            return self._fitting(Recipe(level, self._most_tokens(level)))

    def fitting(self, recipe: Recipe) -> Recipe:
        """`recipe`, or the first easier one by which the most expensive micro-batch fits.

        Raises:
            RunFailed: OutOfMemory, ModelTooLarge.
        """
        with _as_in_training(self.policy):
            return self._fitting(recipe)

    def _fitting(self, recipe: Recipe) -> Recipe:
        while not self._fits(recipe, rows := self._most_expensive(recipe)):
            easier = recipe.easier(len(rows), self._tokens_of(recipe, rows), pairs=self.table.pairs, gradient=True)
            if easier is None and self.policy.sharded:
                raise none_can_go_on(self.policy.device, self._tokens_of(recipe, rows), self.policy.ranks.size)
            if easier is None:
                raise too_long(self.policy, self.table, rows[0], recipe)
            if easier.checkpointing > recipe.checkpointing:
                easier = replace(easier, max_tokens=self._most_tokens(recipe.level, checkpointing=True))
            recipe = easier
        return recipe

    def _most_expensive(self, recipe: Recipe) -> MicroBatchRows:
        return most_expensive(self.table.widths(recipe.level), recipe.max_tokens, self.batch_size)

    def _tokens_of(self, recipe: Recipe, rows: MicroBatchRows) -> int:
        return int(self.table.widths(recipe.level)[list(rows)].sum())

    def _fits(self, recipe: Recipe, rows: MicroBatchRows) -> bool:
        split = recipe.splits(self._tokens_of(recipe, rows))
        self.policy.checkpointing(recipe.checkpointing)
        if self.policy.sharded and measurable(self.policy.device):
            level = Level.SINGLE if split else recipe.level
            wanted = int(self.table.widths(level)[list(rows)].sum())
            if wanted > self._measured_most(level):
                return False  # not tried: where one process runs out of memory, none can go on
        fits = _runs(self.policy, self.table.batch(rows, Level.SINGLE if split else recipe.level), split=split)
        return not self.policy.ranks.any(not fits)

    def _most_tokens(self, level: Level, *, checkpointing: bool = False) -> int:
        """Most tokens of a micro-batch: a constant on a CPU, on a GPU what measured memory has room for."""
        if level is Level.SINGLE or not self.packing:
            return ROW_ALONE
        if not measurable(self.policy.device):
            return CPU_TOKENS
        self.policy.checkpointing(checkpointing)
        return min(self._measured_most(level), MOST_GPU_TOKENS)

    def _measured_most(self, level: Level) -> int:
        """Most tokens for which the memory of every GPU has room, as the model computes at present."""
        sizes = SHARED_MEASURED_TOKENS if self.policy.sharded else MEASURED_TOKENS
        measured = [self._measured(level, size) for size in sizes]
        most = tokens_within(SHARE * free(self.policy.device), [point for point in measured if point])
        return -self.policy.ranks.most(-most)

    def _measured(self, level: Level, size: int) -> tuple[int, int] | None:
        """Tokens and bytes of a pass over a micro-batch of about `size` tokens; None: it does not fit."""
        widths = self.table.widths(level)
        narrow = np.where(widths <= max(size, int(widths.min())), widths, 0)
        batch = self.table.batch(most_expensive(narrow, size, self.batch_size), level)
        fits, used = peak(self.policy.device, lambda: _runs(self.policy, batch, split=False))
        return (batch.tokens, used) if fits else None


def most_tokens(device: torch.device) -> int:
    """More tokens than any micro-batch has on `device`, but for one of a single longer row."""
    return MOST_GPU_TOKENS if device.type == "cuda" else CPU_TOKENS


def tokens_within(free: float, measured: Sequence[tuple[int, int]]) -> int:
    """Tokens of a micro-batch for which `free` bytes are enough, from (tokens, bytes) of at most two smaller ones."""
    if not measured:
        return ROUNDED_TO
    (tokens, used), (more_tokens, more_used) = min(measured), max(measured)
    linear = more_tokens > tokens and more_used > used
    per_token = (more_used - used) / (more_tokens - tokens) if linear else more_used / more_tokens
    constant = max(0.0, more_used - per_token * more_tokens)
    rounded = int((free - constant) / per_token) // ROUNDED_TO * ROUNDED_TO
    return max(rounded, ROUNDED_TO)


def most_expensive(widths: Widths, max_tokens: int, most_rows: int) -> MicroBatchRows:
    """Rows of a micro-batch that takes about as much memory, and then attention, as any of any epoch.

    No plan is looked at, because every epoch has another one. Beginning at one row or another, always the widest row is
    taken for which there is room; the fullest of these micro-batches is returned, of equal ones that with longer rows.
    """
    order = np.argsort(-widths, kind="stable")
    falling = -widths[order]
    beginnings = np.unique(falling, return_index=True)[1][:MOST_BEGINNINGS]
    found = [order[_filled(falling, int(first), max_tokens, most_rows)] for first in beginnings]
    return tuple(max(found, key=lambda rows: (widths[rows].sum(), np.square(widths[rows]).sum())).tolist())


def _filled(falling: Widths, first: int, max_tokens: int, most_rows: int) -> list[int]:
    """Places of rows that fill a micro-batch, `falling` being their widths, negated, the widest first."""
    places, room = [first], max_tokens + int(falling[first])
    while len(places) < most_rows:
        place = max(places[-1] + 1, int(np.searchsorted(falling, -room)))
        if place >= len(falling) or falling[place] == 0:
            break
        places.append(place)
        room += int(falling[place])
    return places


def too_long(policy: Policy, table: Table, row: int, recipe: Recipe) -> RunFailed:
    """The cause that says which row does not fit, and the longest length by which it would."""
    level = Level.SINGLE if recipe.split else recipe.level
    longest = int(table.widths(Level.SINGLE)[row])
    fits, fails = 0, longest
    with no_trace(policy):
        for _ in range(MOST_TRIES):
            middle = (fits + fails) // 2
            if middle < SHORTEST or fails - fits == 1:
                break
            if _runs(policy, table.shortened(row, middle, level), split=recipe.split):
                fits = middle
            else:
                fails = middle
    device = named(policy.device)
    if fits == 0:
        return failed(FailureCode.MODEL_TOO_LARGE, device=device)
    line = table.batch([row], level).lines[0]
    return failed(FailureCode.OUT_OF_MEMORY, line=line, tokens=longest, device=device, fits=fits)


def _runs(policy: Policy, batch: MicroBatch, *, split: bool) -> bool:
    """Whether there is memory for a pass over `batch`, forward and backward; what it adds to gradients remains."""
    policy.training(True)
    fits = within(policy.device, lambda: backward(policy, batch, torch.sum, split=split)) is not None
    if policy.sharded and not fits:
        raise none_can_go_on(policy.device, batch.tokens, policy.ranks.size)
    return fits


@contextmanager
def no_trace(policy: Policy) -> Iterator[None]:
    """Afterwards there are no gradients, and the generators are where they were."""
    with random_state_kept(policy.device):
        try:
            yield
        finally:
            for parameter in policy.trainable.values():
                parameter.grad = None


@contextmanager
def _as_in_training(policy: Policy) -> Iterator[None]:
    """With as much memory taken on a GPU as in any later step; afterwards there is no trace of what ran.

    The optimizer has its tensors, and gradients of earlier micro-batches are there. A CPU hands out memory that it may
    not have, so that taking it would say nothing.
    """
    held: list[Tensor] = []
    with no_trace(policy):
        if policy.device.type == "cuda":
            for parameter in policy.trainable.values():
                parameter.grad = torch.zeros_like(parameter)
                held += [torch.empty_like(parameter) for _ in range(OPTIMIZER_STATES)]
        try:
            yield
        finally:
            held.clear()
    if policy.device.type == "cuda":
        torch.cuda.empty_cache()
