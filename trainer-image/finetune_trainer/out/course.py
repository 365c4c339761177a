"""The course of a run: metrics.jsonl as curves, and curves in as few points as a drawing can show."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Floats: TypeAlias = npt.NDArray[np.float64]
LARGEST = 1e100
"""What is larger has diverged, and is as little a number to draw as an infinite one."""
SMOOTHED_FROM, SMOOTHED_PARTS = 100, 25
"""A curve of at least so many points is also shown as a mean over the newest of so many equal parts."""


@dataclass(frozen=True, slots=True)
class Curve:
    """Values of a metric by step; only finite ones, in the order of steps."""

    steps: Floats
    values: Floats

    def __len__(self) -> int:
        return len(self.steps)

    @staticmethod
    def of(*points: tuple[float, float]) -> Curve:
        """From (step, value)."""
        steps, values = np.array(points, dtype=np.float64).reshape(-1, 2).T
        return Curve(steps, values)

    def after(self, step: float) -> Curve:
        """What follows on `step`."""
        later = self.steps > step
        return Curve(self.steps[later], self.values[later])

    @property
    def negated(self) -> Curve:
        """The same with the other sign."""
        return Curve(self.steps, -self.values)

    @property
    def window(self) -> int:
        """Points of which `smoothed` takes the mean; 1 = it changes nothing."""
        return len(self) // SMOOTHED_PARTS if len(self) >= SMOOTHED_FROM else 1

    def smoothed(self) -> Curve:
        """Each value as the mean of the newest `window` ones, at the beginning of those that there are."""
        sums = np.concatenate(([0.0], np.cumsum(self.values)))
        ends = np.arange(1, len(self) + 1)
        begins = np.maximum(0, ends - self.window)
        return Curve(self.steps, (sums[ends] - sums[begins]) / (ends - begins))

    def thinned(self, most: int) -> Curve:
        """At most `most` points, no peak lost: the lowest and the highest of each of equal parts, the ends besides."""
        count = len(self)
        if count <= most:
            return self
        kept = {0, count - 1}
        for part in np.array_split(np.arange(count), max(1, most // 2 - 1)):
            values = self.values[part]
            kept |= {int(part[values.argmin()]), int(part[values.argmax()])}
        some = sorted(kept)
        return Curve(self.steps[some], self.values[some])

    def between(self, first: float, last: float) -> Floats:
        """The values of the steps after `first` up to `last`."""
        begin, end = np.searchsorted(self.steps, (first, last), side="right")
        return self.values[begin:end]


Course: TypeAlias = dict[str, Curve]
"""By the names of metrics.jsonl: train/loss, eval/rewards/margins."""


def read_course(path: Path) -> Course:
    """The values of metrics.jsonl that can be drawn, up to a line that a kill has cut off; none without the file."""
    steps: dict[str, array[float]] = {}
    values: dict[str, array[float]] = {}
    for row in _rows(path):
        for name, value in row.items():
            if name != "step" and abs(value) < LARGEST:
                steps.setdefault(name, array("d")).append(row["step"])
                values.setdefault(name, array("d")).append(value)
    return {name: Curve(np.array(steps[name]), np.array(values[name])) for name in steps}


def _rows(path: Path) -> Iterator[dict[str, float]]:
    if not path.exists():
        return
    with path.open("rb") as lines:
        for line in lines:
            try:
                yield json.loads(line)
            except ValueError:
                return
