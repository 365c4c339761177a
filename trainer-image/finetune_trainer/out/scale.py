"""The scale of a chart: which values it spans, which of them it names, and what a lone peak does to it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from finetune_trainer.out.course import Floats

TICKS = 4
CENTRE = (2.0, 98.0)
"""Percentiles between which most values lie."""
LONE = 4.0
"""Where a few values stretch the scale to more than so many times what most need, they are cut off, and said to be."""
PADDING = 0.06
ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Scale:
    """Values between `low` and `high`."""

    low: float
    high: float
    ticks: tuple[float, ...]

    def down(self, value: float) -> float:
        """Where `value` stands: 0 at the top, 1 at the bottom; what lies beyond stands at the edge."""
        return min(1.0, max(0.0, (self.high - value) / (self.high - self.low)))

    def holds(self, value: float) -> bool:
        """Whether `value` is on it."""
        return self.low <= value <= self.high


def scale_of(
    many: Floats, all_shown: Floats, level: float | None = None, bounds: tuple[float, float] | None = None
) -> Scale:
    """The scale for a chart.

    Args:
        many: values of which a few may be cut off.
        all_shown: values that must be on it.
        level: a value to compare with, shown if it is near.
        bounds: values cannot lie outside.
    """
    every = np.concatenate((many, all_shown))
    low, high = float(every.min()), float(every.max())
    if len(many) > TICKS:
        kept = np.concatenate((np.percentile(many, CENTRE), all_shown))
        inner = float(kept.min()), float(kept.max())
        spread = inner[1] - inner[0]
        if 0 < LONE * spread < high - low:
            near = every[(every >= inner[0] - spread) & (every <= inner[1] + spread)]
            low, high = float(near.min()), float(near.max())
    if level is not None and low - (high - low) <= level <= high + (high - low):
        low, high = min(low, level), max(high, level)
    low, high = _padded(low, high, bounds)
    return Scale(low, high, tuple(ticks(low, high, TICKS)))


def _padded(low: float, high: float, bounds: tuple[float, float] | None) -> tuple[float, float]:
    """With room at both ends, also where all values are one."""
    room = PADDING * (high - low) or PADDING * abs(high) or 1.0
    low, high = low - room, high + room
    return (max(low, bounds[0] - 0.02), min(high, bounds[1] + 0.02)) if bounds else (low, high)


def ticks(low: float, high: float, most: int, *, whole: bool = False) -> list[float]:
    """At most about `most` round numbers (1, 2 or 5 times a power of ten apart) from `low` to `high`.

    Args:
        whole: only whole numbers.
    """
    rough = (high - low) / most
    if rough <= 0 or not math.isfinite(rough):
        return [low]
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * nice for nice in (1, 2, 5, 10) if power * nice >= rough * (1 - ROUNDING))
    step = max(1.0, step) if whole else step
    first, last = math.ceil(low / step), math.floor(high / step)
    return [k * step for k in range(first, last + 1)]
