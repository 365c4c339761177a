"""Curves as SVG, drawn by hand: no script, no library, sharp at every width, in the colours of the page.

The drawing is stretched to the room that there is and its strokes are not; every text is HTML beside it, placed in
percent, so that it keeps its size on a phone. Values under the pointer are the drawing's own titles.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from markupsafe import Markup

from finetune_trainer.out.course import Curve, Floats
from finetune_trainer.out.numerals import evenly, number
from finetune_trainer.out.scale import Scale, ticks

MOST_POINTS, MOST_BANDS, MOST_GAPS = 400, 48, 60
SIDE = 1000
"""The drawing is 1000 units wide and as many high."""
STEPS = 5
"""Steps that are named, about."""
LABEL_SHARE = 0.115
"""Height of a label at the end of a line, as a share of the drawing's."""


class Look(StrEnum):
    """How a line is drawn: by colour, and by weight and dashes for who cannot tell colours apart."""

    TRAIN = "train"
    EVAL = "eval"
    WORSE_TRAIN = "train worse"
    WORSE_EVAL = "eval worse"
    ALONE = "alone"
    """The only line of its chart, which shows every value."""


@dataclass(frozen=True, slots=True)
class Line:
    """A curve and how it is called."""

    name: str
    curve: Curve
    look: Look
    of: str = ""
    """Which of the lines of that name it is, for who cannot see it."""

    @property
    def spoken(self) -> str:
        """Its whole name."""
        return f"{self.name} {self.of}".strip()

    @property
    def is_measured(self) -> bool:
        """It has a dot for each value, as evaluations have."""
        return self.look in (Look.EVAL, Look.WORSE_EVAL)

    @property
    def is_averaged(self) -> bool:
        """Its steps are so many, and so different, that their mean tells more."""
        return self.look in (Look.TRAIN, Look.WORSE_TRAIN) and self.curve.window > 1

    @property
    def drawn(self) -> Curve:
        """The curve that the eye follows: the mean of the newest values where these are many."""
        return self.curve.smoothed() if self.is_averaged else self.curve


@dataclass(frozen=True, slots=True)
class Chart:
    """Some curves of one quantity."""

    title: str
    meaning: str
    """How it is read, in a few words."""
    lines: tuple[Line, ...]
    level: float | None = None
    """A value to compare with."""
    bounds: tuple[float, float] | None = None
    """Values cannot lie outside."""
    peaks: bool = True
    """Single steps are shown; else they would tell more of their rows than of the training."""
    small: bool = False


@dataclass(frozen=True, slots=True)
class Frame:
    """What all charts of a page have in common."""

    last: int
    """The last step of the run, at least 1."""
    best: int = 0
    """Step of the best evaluation; 0 = none."""
    missing: tuple[int, ...] = ()
    """Steps without finite numbers."""

    def across(self, steps: Floats | Sequence[float]) -> Floats:
        """Steps in units of the drawing, from the left."""
        return np.asarray(steps, dtype=np.float64) * SIDE / self.last


@dataclass(frozen=True, slots=True)
class Label:
    """A text beside the drawing."""

    at: float
    """Percent from the top, or from the left."""
    text: str
    look: str = ""


def y_labels(scale: Scale) -> list[Label]:
    """Values beside the grid."""
    texts = evenly(scale.ticks)
    return [Label(100 * scale.down(value), text) for value, text in zip(scale.ticks, texts, strict=True)]


def x_labels(frame: Frame) -> list[Label]:
    """Steps below the drawing."""
    return [Label(100 * step / frame.last, f"{step:,.0f}") for step in ticks(0, frame.last, STEPS, whole=True)]


def end_labels(chart: Chart, scale: Scale) -> list[Label]:
    """Name and last value of each line where it ends, moved apart where they would meet."""
    height = LABEL_SHARE * (1.7 if chart.small else 1)
    ends = [(scale.down(line.drawn.values[-1]), line) for line in chart.lines]
    ends.sort(key=lambda end: end[0])
    places = spread([place for place, _ in ends], height)
    return [
        Label(100 * place, f"{line.name} {number(line.drawn.values[-1], 3)}".strip(), line.look)
        for place, (_, line) in zip(places, ends, strict=True)
    ]


def spread(places: Sequence[float], apart: float) -> list[float]:
    """Places in ascending order, 0 to 1, moved as little as keeps them `apart`."""
    moved = list(places)
    for i in range(1, len(moved)):
        moved[i] = max(moved[i], moved[i - 1] + apart)
    limit = 1.0
    for i in reversed(range(len(moved))):
        moved[i] = min(moved[i], limit)
        limit = moved[i] - apart
    return moved


def drawing(chart: Chart, scale: Scale, frame: Frame) -> Markup:
    """The SVG of a chart."""
    parts = [
        *(_rule(scale.down(value), "grid") for value in scale.ticks),
        *([_rule(scale.down(chart.level), "level")] if chart.level is not None and scale.holds(chart.level) else []),
        *([_upright(frame, frame.best, "best")] if frame.best else []),
        *_gaps(frame),
        *(_each(line, scale, frame) for line in chart.lines if chart.peaks and line.is_averaged),
        *(part for line in chart.lines for part in _line(line, scale, frame)),
        _bands(chart, frame),
    ]
    return Markup(
        '<svg viewBox="0 0 {side} {side}" preserveAspectRatio="none" role="img" aria-label="{said}">{parts}</svg>'
    ).format(side=SIDE, said=said(chart), parts=Markup("").join(parts))


def said(chart: Chart) -> str:
    """The chart in words."""
    ways = (f"{line.spoken or 'it'} goes from {_ends(line.drawn)}" for line in chart.lines)
    return f"{chart.title} by step: {'; '.join(ways)}"


def _ends(curve: Curve) -> str:
    return f"{number(curve.values[0], 3)} to {number(curve.values[-1], 3)}"


def _rule(place: float, look: str) -> Markup:
    return Markup('<path class="{look}" d="M0 {y}H{side}"/>').format(look=look, y=round(SIDE * place), side=SIDE)


def _upright(frame: Frame, step: int, look: str) -> Markup:
    x = round(float(frame.across([step])[0]))
    return Markup('<path class="{look}" d="M{x} 0V{side}"/>').format(look=look, x=x, side=SIDE)


def _gaps(frame: Frame) -> Iterator[Markup]:
    """Short strokes on the axis where a step had no finite numbers."""
    places = sorted({round(float(x)) for x in frame.across(frame.missing)})
    for x in places[:: max(1, -(-len(places) // MOST_GAPS))]:
        yield Markup('<path class="gap" d="M{x} {top}V{side}"/>').format(x=x, top=SIDE - 40, side=SIDE)


def _each(line: Line, scale: Scale, frame: Frame) -> Markup:
    """Every value, faintly, behind the means."""
    return _path(f"{line.look} each", _polyline(_points(line.curve, scale, frame)))


def _line(line: Line, scale: Scale, frame: Frame) -> Iterator[Markup]:
    """A stroke, and for an evaluation or a value that stands alone a dot."""
    points = _points(line.drawn, scale, frame)
    yield _path(line.look, _polyline(points))
    if line.is_measured or len(points) == 1:
        yield _path(f"{line.look} dot", "".join(f"M{x} {y}h0" for x, y in points))


def _path(look: str, data: str) -> Markup:
    return Markup('<path class="{look}" d="{data}"/>').format(look=look, data=data)


def _polyline(points: Sequence[tuple[int, int]]) -> str:
    return "M" + " ".join(f"{x} {y}" for x, y in points)


def _points(curve: Curve, scale: Scale, frame: Frame) -> list[tuple[int, int]]:
    """The curve in units of the drawing, in as many points as can be told apart."""
    few = curve.thinned(MOST_POINTS)
    across = [round(float(x)) for x in frame.across(few.steps)]
    return list(zip(across, (round(SIDE * scale.down(value)) for value in few.values), strict=True))


def _bands(chart: Chart, frame: Frame) -> Markup:
    """Uprights that name the values under the pointer."""
    count = min(MOST_BANDS, frame.last)
    edges = [round(frame.last * k / count) for k in range(count + 1)]
    bands = [
        Markup('<rect x="{x}" width="{w}" height="{side}"><title>{said}</title></rect>').format(
            x=round(SIDE * k / count), w=-(-SIDE // count), side=SIDE, said="\n".join(values)
        )
        for k, (first, last) in enumerate(itertools.pairwise(edges))
        if len(values := _under(chart, first, last)) > 1
    ]
    return Markup('<g class="bands">{}</g>').format(Markup("").join(bands))


def _under(chart: Chart, first: int, last: int) -> list[str]:
    """What stands in the steps after `first` up to `last`, a line for each curve."""
    told = [f"step {last:,}" if last - first <= 1 else f"steps {first + 1:,} to {last:,}"]
    for line in chart.lines:
        values = line.curve.between(first, last)
        if len(values):
            low, high = number(values.min()), number(values.max())
            told.append(f"{line.spoken} {low if low == high else f'{low} to {high}'}".strip())
    return told
