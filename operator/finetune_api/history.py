"""The course of a run in few points: curves that a person can look at in the status itself, bounded whatever happens.

metrics.jsonl holds every value; this is a sketch of it. Points are thinned by the steps they stand for and not by
their number, so that thinning again, or joining what two pods saw, keeps the curve even.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import Field, StringConstraints, WithJsonSchema

from finetune_api.base import ApiModel, Integer, Number

MAX_SERIES, MAX_POINTS = 8, 50
CURVES = (
    "train/loss",
    "train/rewardAccuracy",
    "train/rewardMargin",
    "train/klChosen",
    "train/gradNorm",
    "eval/loss",
    "eval/rewardAccuracy",
    "eval/rewardMargin",
)
"""What has a curve, by the names of the metric table: what tells a good run from a bad one at a glance."""
PAIR: dict[str, Any] = {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2}

Point = Annotated[tuple[Annotated[Integer, Field(ge=0, lt=2**53)], Number], WithJsonSchema(PAIR)]
"""[step, value]"""


class Series(ApiModel):
    """The course of one value."""

    name: Annotated[str, StringConstraints(max_length=64)]
    """train/ or eval/, and the metric's name."""
    points: Annotated[tuple[Point, ...], Field(max_length=MAX_POINTS)] = ()
    """[step, value], in the order of steps, evenly thinned."""


class History(ApiModel):
    """The course of the run in few points; metrics.jsonl at the output holds every value."""

    series: Annotated[tuple[Series, ...], Field(max_length=MAX_SERIES)] = ()
    """At most one per value."""


def thinned(points: Iterable[tuple[int, float]], most: int = MAX_POINTS) -> tuple[tuple[int, float], ...]:
    """At most `most` points, the newest of each of equal ranges of steps; of one step, the last that is given.

    A range is as many steps as a power of two, counted from 0: so ranges only ever join two and two as a run goes on,
    and a curve that is thinned again and again is the one that would have been thinned once. The newest point stays.
    """
    ordered = sorted(dict(points).items())
    if len(ordered) <= most:
        return tuple(ordered)
    shift = (ordered[-1][0] // most).bit_length()
    return tuple({step >> shift: (step, value) for step, value in ordered}.values())


def joined(before: History | None, after: History | None) -> History | None:
    """The history of a run of which `after` tells the rest: a pod that went on from a saved state has its own steps.

    Of each curve, what `before` has from the first step of `after` on is gone: it was trained again.
    """
    if before is None or after is None:
        return after or before
    curves = {series.name: series.points for series in before.series}
    for series in after.series:
        if series.points:
            begin = min(step for step, _ in series.points)
            earlier = [point for point in curves.get(series.name, ()) if point[0] < begin]
            curves[series.name] = thinned([*earlier, *series.points])
    newest_first = [*(series.name for series in after.series), *curves]
    kept = list(dict.fromkeys(newest_first))[:MAX_SERIES]
    return History(series=tuple(Series(name=name, points=curves.get(name, ())) for name in sorted(kept, key=_rank)))


def _rank(name: str) -> tuple[int, str]:
    return (CURVES.index(name) if name in CURVES else len(CURVES), name)
