"""Which curves a run has, and how each is read: a table, from which the page takes what metrics.jsonl holds."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import log

import numpy as np
from markupsafe import Markup

from finetune_api.method import MethodType, TrainingMethod
from finetune_trainer.out.charts import Chart, Frame, Label, Line, Look, drawing, end_labels, x_labels, y_labels
from finetune_trainer.out.course import Course
from finetune_trainer.out.numerals import counted, number
from finetune_trainer.out.scale import Scale, scale_of

STAGES = (("train", Look.TRAIN, Look.WORSE_TRAIN), ("eval", Look.EVAL, Look.WORSE_EVAL))


@dataclass(frozen=True, slots=True)
class Figure:
    """A chart, laid out."""

    chart: Chart
    drawing: Markup
    across: list[Label]
    """Steps below it."""
    up: list[Label]
    """Values beside it."""
    ends: list[Label]
    """Names of its lines, where they end."""
    best: Label | None
    """The mark of the best evaluation."""
    notes: list[str]


def figures(course: Course, method: TrainingMethod, frame: Frame) -> list[Figure]:
    """Every chart that has a curve, the small ones last."""
    return [_laid_out(chart, frame) for chart in _charts(course, method) if chart.lines]


def has_reference(method: TrainingMethod) -> bool:
    """Whether answers are compared with what the starting weights say of them."""
    return method.type is MethodType.DPO and not method.preference.reference_free


def meaningful(course: Course, method: TrainingMethod) -> Course:
    """What can be read: before the first step policy and reference are one, so that no answer can win."""
    name = "eval/rewards/accuracies"
    if name not in course or not has_reference(method):
        return course
    later = course[name].after(0)
    others = {other: curve for other, curve in course.items() if other != name}
    return {**others, name: later} if len(later) else others


def _charts(course: Course, method: TrainingMethod) -> list[Chart]:
    start = _loss_of_nothing(method)
    ln2 = "; dotted: ln 2, where nothing is preferred" if start else ""
    share = "share of pairs whose preferred answer wins; dotted: chance"
    return [
        Chart("Loss", f"lower is better{ln2}", _both(course, "loss"), start),
        Chart("Reward accuracy", share, _both(course, "rewards/accuracies"), 0.5, (0.0, 1.0)),
        Chart(
            "Reward margin", "reward of the preferred answer minus the other's", _both(course, "rewards/margins"), 0.0
        ),
        Chart(
            "Change of log-probabilities",
            "of whole answers since the start, in nats; dashed: non-preferred",
            _sides(_negated(course), "kl/chosen", "kl/rejected"),
            0.0,
        ),
        Chart(
            "Log-probabilities",
            "of whole answers, in nats; dashed: non-preferred",
            _sides(course, "logps/chosen", "logps/rejected"),
            peaks=False,
        ),
        Chart("Distance from the start", "estimate of KL(start, policy), nats per answer", _both(course, "kl"), 0.0),
        Chart("Negative log-likelihood", "of the preferred answers, nats per token", _both(course, "nll")),
        Chart("Learning rate", "as scheduled", _alone(course, "train/learning_rate"), small=True),
        Chart("Gradient norm", "before clipping", _alone(course, "train/grad_norm"), small=True),
    ]


def _loss_of_nothing(method: TrainingMethod) -> float | None:
    """The loss of a pair of which nothing is known, where that is the same for all."""
    chosen = method.preference
    return log(2) if has_reference(method) and not chosen.rpo_alpha else None


def _both(course: Course, name: str) -> tuple[Line, ...]:
    return tuple(Line(s, course[f"{s}/{name}"], look) for s, look, _ in STAGES if f"{s}/{name}" in course)


def _sides(course: Course, better: str, worse: str) -> tuple[Line, ...]:
    wanted = [
        (f"{stage}/{name}", stage, look, side)
        for stage, *looks in STAGES
        for name, look, side in zip((better, worse), looks, ("preferred", "non-preferred"), strict=True)
    ]
    return tuple(Line(stage, course[key], look, side) for key, stage, look, side in wanted if key in course)


def _alone(course: Course, name: str) -> tuple[Line, ...]:
    return (Line("", course[name], Look.ALONE),) if name in course else ()


def _negated(course: Course) -> Course:
    """KL is estimated as what the reference says minus what the policy says: the other way round it is the change."""
    return {name: curve.negated for name, curve in course.items() if "/kl/" in name}


def _laid_out(chart: Chart, frame: Frame) -> Figure:
    scale = _scale(chart)
    measured = any(line.is_measured for line in chart.lines)
    frame = frame if measured else replace(frame, best=0)
    return Figure(
        chart=chart,
        drawing=drawing(chart, scale, frame),
        across=x_labels(frame),
        up=y_labels(scale),
        ends=end_labels(chart, scale),
        best=Label(100 * frame.best / frame.last, "best") if frame.best else None,
        notes=_notes(chart, scale),
    )


def _scale(chart: Chart) -> Scale:
    """Evaluations are on it; single steps are, but for a few that would flatten all others."""
    shown = [line.drawn.values for line in chart.lines if line.is_measured or not chart.peaks]
    steps = [line.curve.values for line in chart.lines if not line.is_measured and chart.peaks]
    nothing = [np.empty(0)]
    return scale_of(np.concatenate(steps or nothing), np.concatenate(shown or nothing), chart.level, chart.bounds)


def _notes(chart: Chart, scale: Scale) -> list[str]:
    """What the drawing does not show by itself."""
    windows = [line.curve.window for line in chart.lines if line.is_averaged]
    each = "Faint: each step; strong: mean" if chart.peaks else "Training: mean"
    notes = [f"{each} of the newest {max(windows)} steps."] if windows else []
    if not chart.peaks:
        return notes
    beyond = [value for line in chart.lines for value in line.curve.values if not scale.holds(value)]
    if beyond:
        furthest = max(beyond, key=lambda value: abs(value - scale.high))
        notes.append(f"{counted(len(beyond), 'value')} beyond the scale, as far as {number(furthest, 3)}.")
    return notes
