"""Where in a run evaluations and checkpoints lie, and which published ones a job still offers."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable

from finetune_api.status import Checkpoint, CheckpointType


def spaced(count: int, total: int) -> frozenset[int]:
    """The steps floor(k * total / count + 0.5) for k = 1..count, at least 1; the last is `total`."""
    return frozenset(max(1, math.floor(k * total / count + 0.5)) for k in range(1, count + 1))


def offered(checkpoints: Iterable[Checkpoint], planned: Collection[int]) -> tuple[Checkpoint, ...]:
    """Those of `checkpoints` that another job may start from, in their order.

    Left out is what was published only because it was the best, and is so no more, and what an attempt published
    beyond the end that a later one came to: their folders are removed.

    Args:
        planned: steps of the checkpoints that were asked for.
    """
    every = tuple(checkpoints)
    end = max((c.step for c in every if c.type is not CheckpointType.INTERMEDIATE), default=math.inf)
    wanted = (c for c in every if c.best or c.step in planned or c.type is not CheckpointType.INTERMEDIATE)
    return tuple(c for c in wanted if c.step <= end)
