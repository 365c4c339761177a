"""Gradients and scores of rows, summed over their micro-batches so that the split changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import zip_longest
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from finetune_trainer.step.batch import NOTHING, MicroBatch, sent
from finetune_trainer.step.collate import collated
from finetune_trainer.step.memory import none_can_go_on, random_state, set_random_state, within
from finetune_trainer.step.model import Policy
from finetune_trainer.step.packing import MicroBatchRows, divide, pack
from finetune_trainer.step.recipe import Level, Recipe
from finetune_trainer.step.sharding import share_of

NOT_STUCK = -1


class Table(Protocol):
    """The rows of a file, as micro-batches are made of them."""

    @property
    def pairs(self) -> bool:
        """Whether a row has two sequences, else one."""

    def widths(self, level: Level) -> npt.NDArray[np.int64]:
        """Tokens of each row in a pass, [all rows]; where a pass holds one sequence, those of its longest."""

    def batch(self, rows: Sequence[int], level: Level) -> MicroBatch:
        """Their tokens."""

    def shortened(self, row: int, longest: int, level: Level) -> MicroBatch:
        """The row alone, cut so that its longest sequence has `longest` tokens, at least 2."""


class Objective(Table, Protocol):
    """What a method makes of rows."""

    def units(self, rows: Sequence[int]) -> int:
        """What the sum of losses is divided by."""

    def loss(self, sums: Tensor, rows: Sequence[int]) -> Tensor:
        """Sum of their losses, from the sums of log-probabilities of their sequences."""


class NoRoom(Exception):
    """A micro-batch did not fit into memory."""

    def __init__(self, rows: MicroBatchRows) -> None:
        super().__init__(rows)
        self.rows = rows


def accumulate(
    policy: Policy, objective: Objective, recipe: Recipe, rows: Sequence[int], before_each: Callable[[], None]
) -> Tensor:
    """Add the gradient of (sum of losses over `rows`) / (their units) to the trainable parameters.

    Of several processes each computes the micro-batches of its share, and all get the whole sum.

    Args:
        before_each: called before each micro-batch; what it raises ends the step, its gradients half summed.

    Returns:
        Sums of log-probabilities of every sequence, row by row in the order of `rows`, fp64, on the policy's device.

    Raises:
        NoRoom: the gradients are half summed.
        RunFailed: SharedOutOfMemory: the same, where the processes share the weights.
    """
    policy.training(True)
    units = objective.units(rows)

    def one(rows: MicroBatchRows, batch: MicroBatch, split: bool) -> Tensor:
        loss = partial(_share_of_loss, objective, rows, units)
        return backward(policy, batch, loss, split=split)

    sums = _each(policy, objective, recipe, rows, before_each, one)
    for parameter in policy.trainable.values():
        if parameter.grad is None:  # of a vision encoder in a step without images: the same on any number of processes
            parameter.grad = torch.zeros_like(parameter)
    policy.ranks.sum_gradients(p for p in policy.trainable.values() if share_of(p) is None)
    return sums


def _share_of_loss(objective: Objective, rows: MicroBatchRows, units: int, sums: Tensor) -> Tensor:
    """What `rows` add to the loss of their step: nothing, where a process has none and only takes part."""
    return objective.loss(sums, rows) / units if rows else sums.sum()


@torch.no_grad()
def scores(
    policy: Policy, table: Table, recipe: Recipe, rows: Sequence[int], before_each: Callable[[], None]
) -> Tensor:
    """Sums of log-probabilities of every sequence, as `accumulate` returns them, without dropout and gradients.

    Raises:
        NoRoom, RunFailed: as `accumulate`.
    """
    policy.training(False)
    return _each(policy, table, recipe, rows, before_each, lambda _rows, batch, _split: policy.score(batch))


def backward(policy: Policy, batch: MicroBatch, loss: Callable[[Tensor], Tensor], *, split: bool) -> Tensor:
    """Add the gradient of `loss`, a function of the sums of log-probabilities; returns those sums.

    Split, only one pass of the micro-batch keeps activations at a time: all are scored first without keeping any, which
    gives the derivative of the loss by each sum, then each runs again, with the same dropout, and back.
    """
    if not split:
        sums = policy.score(batch)
        loss(sums).backward()
        return sums.detach()
    states, parts = [], []
    with torch.no_grad():
        for one in batch.passes:
            states.append(random_state(policy.device))
            parts.append(policy.score_pass(one, batch.sequences))
    sums = torch.stack(parts).sum(0).requires_grad_()
    (factors,) = torch.autograd.grad(loss(sums), sums)
    for one, state in zip(batch.passes, states, strict=True):
        set_random_state(policy.device, state)
        (policy.score_pass(one, batch.sequences) * factors).sum().backward()
    return sums.detach()


def _each(
    policy: Policy,
    table: Table,
    recipe: Recipe,
    rows: Sequence[int],
    before_each: Callable[[], None],
    run: Callable[[MicroBatchRows, MicroBatch, bool], Tensor],
) -> Tensor:
    """`run` on every micro-batch of `rows`, told whether it is split; the sums in the order of `rows`.

    All processes take the same number of turns, some with nothing to do, and agree in each on whether it fitted.
    """
    ranks, turns = policy.ranks, _turns(policy, table, recipe, rows)

    def make(turn: _Turn) -> MicroBatch:
        batch = turn.batch(table, recipe.level)
        return batch.pinned() if policy.device.type == "cuda" else batch

    mine = [turn[ranks.rank] for turn in turns if turn[ranks.rank].passes]
    parts: list[Tensor] = []
    with closing(collated(mine, make)) as batches:
        for number, made in zip_longest(range(len(turns)), batches):
            before_each()
            found = within(policy.device, partial(run, made[0].rows, made[1], made[0].split)) if made else None
            if made and found is None and policy.sharded:
                raise none_can_go_on(policy.device, made[1].tokens, ranks.size)
            parts += [found] if found is not None else []
            stuck = ranks.most(number * ranks.size + ranks.rank if made and found is None else NOT_STUCK)
            if stuck != NOT_STUCK:
                raise NoRoom(turns[stuck // ranks.size][stuck % ranks.size].rows)
    sums = torch.zeros(len(rows), 2 if table.pairs else 1, dtype=torch.float64, device=policy.device)
    return ranks.total(_in_order(sums, parts, [turn.rows for turn in mine], rows)).flatten()


@dataclass(frozen=True, slots=True)
class _Turn:
    """What one process does while the others do theirs."""

    rows: MicroBatchRows
    split: bool
    passes: int
    """Forward passes, those among them that compute nothing; 0: there is nothing to do at all."""

    def batch(self, table: Table, level: Level) -> MicroBatch:
        """Its tokens."""
        level = Level.SINGLE if self.split else level
        return (table.batch(self.rows, level) if self.rows else NOTHING).padded(self.passes, level)


def _turns(policy: Policy, table: Table, recipe: Recipe, rows: Sequence[int]) -> list[list[_Turn]]:
    """What each process does in each turn, by turn and process; in the last ones some have no rows.

    Where weights are spread, a pass is something that all of them do together: so all make as many as the one that
    makes the most.
    """
    widths = table.widths(recipe.level)

    def turn(some: MicroBatchRows) -> _Turn:
        split = recipe.splits(int(widths[list(some)].sum()))
        single = split or recipe.level is Level.SINGLE
        return _Turn(some, split, len(some) * (2 if table.pairs else 1) if single else min(1, len(some)))

    shares = [pack(share, widths, recipe.max_tokens) for share in divide(rows, widths, policy.ranks.size)]
    together = [[turn(some) for some in of_each] for of_each in zip_longest(*shares, fillvalue=())]
    return [_alike(turns) for turns in together] if policy.sharded else together


def _alike(turns: Sequence[_Turn]) -> list[_Turn]:
    """The same turn of every process, with as many passes as any of them needs."""
    split, passes = any(turn.split for turn in turns), max(turn.passes for turn in turns)
    return [replace(turn, split=split, passes=passes) for turn in turns]


def _in_order(
    sums: Tensor, parts: list[Tensor], micro_batches: Sequence[MicroBatchRows], rows: Sequence[int]
) -> Tensor:
    """`sums` with those of the rows of `micro_batches`, which are `parts`, in the order of `rows`."""
    if places_of := [row for some in micro_batches for row in some]:
        place = {row: at for at, row in enumerate(rows)}
        places = sent(torch.tensor([place[row] for row in places_of]), sums.device)
        sums.index_copy_(0, places, torch.cat(parts).view(len(places), -1))
    return sums
