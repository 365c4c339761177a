"""Where in a run evaluations and checkpoints lie."""

from __future__ import annotations

import math


def spaced(count: int, total: int) -> frozenset[int]:
    """The steps floor(k * total / count + 0.5) for k = 1..count, at least 1; the last is `total`."""
    return frozenset(max(1, math.floor(k * total / count + 0.5)) for k in range(1, count + 1))
