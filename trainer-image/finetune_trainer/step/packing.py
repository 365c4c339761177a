"""The planner: which rows form an optimiser step, and how they are split into micro-batches.

Pure functions of (seed, epoch, batch size) and of (widths, token limit): a plan is never saved, only computed again, so
a resumed run sees the rows that an uninterrupted one would have seen. Packing never decides which rows form a step.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

MicroBatchRows: TypeAlias = tuple[int, ...]
ATTENTION_LENGTH = 16384
"""Width of a row whose attention costs about as much as all else that is computed for it."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The steps of a run. They count from 0; the last step of an epoch holds what is left of it."""

    rows: int
    """Rows of the training file."""
    batch_size: int
    epochs: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps of one pass over the rows."""
        return math.ceil(self.rows / self.batch_size)

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the run."""
        return self.epochs * self.steps_per_epoch

    def step(self, step: int) -> tuple[int, ...]:
        """The rows of step `step`, 0 <= step < total_steps."""
        epoch, place = divmod(step, self.steps_per_epoch)
        order = permutation(self.rows, self.seed, epoch)
        return tuple(order[place * self.batch_size : (place + 1) * self.batch_size].tolist())

    def first_epoch(self) -> tuple[tuple[int, ...], ...]:
        """The steps of the first epoch: each row once, in the company in which it is first trained."""
        return tuple(self.step(step) for step in range(self.steps_per_epoch))


@lru_cache(maxsize=2)
def permutation(rows: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """The order of the rows in an epoch, int64 [rows].

    From the raw stream of the bit generator, which numpy promises to keep; its shuffles may change between versions.
    """
    raw = np.random.PCG64(np.random.SeedSequence([seed, epoch])).random_raw(rows)
    return np.argsort(raw, kind="stable").astype(np.int64)


def divide(rows: Iterable[int], widths: npt.NDArray[np.int64], parts: int) -> tuple[MicroBatchRows, ...]:
    """`rows` in `parts` parts that cost about the same: the costliest first, each to the part that has least.

    Some parts are empty where there are fewer rows.
    """
    given = tuple(rows)
    if parts == 1:
        return (given,)
    costs = {row: float(widths[row]) * (1 + float(widths[row]) / ATTENTION_LENGTH) for row in given}
    loads = [(0.0, part) for part in range(parts)]
    divided: list[list[int]] = [[] for _ in range(parts)]
    for row in sorted(given, key=lambda row: (-costs[row], row)):
        load, part = loads[0]
        divided[part].append(row)
        heapq.heapreplace(loads, (load + costs[row], part))
    return tuple(map(tuple, divided))


def pack(rows: Iterable[int], widths: npt.NDArray[np.int64], max_tokens: int) -> tuple[MicroBatchRows, ...]:
    """First-fit-decreasing: rows by falling width, each into the first micro-batch that still has room for it.

    A row wider than `max_tokens` has a micro-batch to itself. Room is kept in a tree whose nodes hold the most room
    below them, so 100,000 rows take a second.
    """
    order = sorted(rows, key=lambda row: (-int(widths[row]), row))
    leaves = 1 << max(len(order) - 1, 0).bit_length()
    room = [max_tokens] * (2 * leaves)
    packed: list[list[int]] = []
    for row in order:
        width = min(int(widths[row]), max_tokens)
        node = 1
        while node < leaves:
            node = 2 * node if room[2 * node] >= width else 2 * node + 1
        if (place := node - leaves) == len(packed):
            packed.append([])
        packed[place].append(row)
        room[node] -= width
        while node := node // 2:
            room[node] = max(room[2 * node], room[2 * node + 1])
    return tuple(map(tuple, packed))
