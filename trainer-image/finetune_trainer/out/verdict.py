"""What a person decides by: how the run ended, what it came to in a sentence, and the few figures that count."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import exp
from typing import TypeAlias

from finetune_api.evaluation import EvaluationMetric
from finetune_api.method import MethodType
from finetune_api.status import Checkpoint, CheckpointType
from finetune_trainer.out.course import Course, Curve
from finetune_trainer.out.facts import Facts
from finetune_trainer.out.figures import has_reference
from finetune_trainer.out.numerals import counted, number, percent, signed

MOST_MEANT = 20
"""Steps whose mean stands for the beginning or the end of training, or a tenth of the run if that is less."""


@dataclass(frozen=True, slots=True)
class Key:
    """A figure that counts."""

    name: str
    before: str
    """Empty where there was nothing to measure yet."""
    now: str
    note: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a run came out."""

    state: str
    """completed, stopped early, failed"""
    sentences: list[str]
    keys: list[Key]


def verdict(facts: Facts, course: Course) -> Verdict:
    """How the run of `facts` came out."""
    sentences = (_ended(facts), _learned(facts, course), _best(facts))
    return Verdict(_state(facts), [sentence for sentence in sentences if sentence], _keys(facts, course))


def _state(facts: Facts) -> str:
    if facts.report.failure is not None:
        return "failed"
    return "stopped early" if facts.report.early_stop else "completed"


def _ended(facts: Facts) -> str:
    report = facts.report
    if report.failure is not None:
        return _sentence(report.failure.sentence)
    if stop := report.early_stop:
        return (
            f"Training ended after step {stop.step:,} of {facts.resolved.total_steps or 0:,}, because {stop.metric} did"
            f" not improve in {counted(stop.evaluations, 'evaluation')}."
        )
    return ""


def _learned(facts: Facts, course: Course) -> str:
    """The loss before and after, and of pairs how often the preferred answer wins."""
    loss = course.get("eval/loss")
    if loss is None or len(loss) < 2:
        return _trained(facts, course)
    rows = counted(facts.data.validation_rows or 0, "validation row" if _is_sft(facts) else "validation pair")
    text = f"On {rows} the loss {_went(loss.values[0], loss.values[-1])}"
    accuracy, margin = course.get("eval/rewards/accuracies"), course.get("eval/rewards/margins")
    if accuracy is None or margin is None:
        return f"{text}."
    return (
        f"{text}, and the preferred answer has the higher reward in {percent(accuracy.values[-1])} of them; the margin"
        f" is {number(margin.values[-1], 3)} on average."
    )


def _trained(facts: Facts, course: Course) -> str:
    """What there is to say without evaluations."""
    loss = course.get("train/loss")
    if loss is None:
        return "No step was completed."
    advice = "Set validationFile and evaluation.nEvals to learn how it does on rows that it was not trained on."
    if facts.report.failure is not None or len(loss) < 2:
        return "" if facts.report.failure else f"The only step had a loss of {number(loss.values[0])}. {advice}"
    first, last = ends(loss)
    return f"The training loss {_went(first, last)}. {advice}"


def _went(before: float, after: float) -> str:
    way = "fell" if after < before else "rose" if after > before else "stayed"
    return f"{way} from {number(before)} to {number(after)}" if way != "stayed" else f"stayed at {number(after)}"


def _best(facts: Facts) -> str:
    """Which checkpoint to take."""
    best, final = best_of(facts), final_of(facts)
    if best is None or final is None:
        return ""
    if best.step == final.step:
        return "The last evaluation was the best one: take the final checkpoint."
    early = facts.config.evaluation.early_stopping
    metric = early.metric if early else EvaluationMetric.LOSS
    value = best.metrics.get(f"eval{metric[0].upper()}{metric[1:]}")
    shown = f" ({metric} {number(value)})" if value is not None else ""
    return (
        f"The best evaluation was that of step {best.step:,}{shown}; none since was better: prefer {best.name} to the"
        f" final checkpoint if {metric} is what counts."
    )


def best_of(facts: Facts) -> Checkpoint | None:
    """The checkpoint with the best evaluation."""
    return next((c for c in facts.report.checkpoints if c.best), None)


def final_of(facts: Facts) -> Checkpoint | None:
    """The checkpoint of the last step."""
    return next((c for c in facts.report.checkpoints if c.type is CheckpointType.FINAL), None)


def ends(curve: Curve) -> tuple[float, float]:
    """The mean of the first values and of the last ones: a single step is mostly noise."""
    some = max(1, min(MOST_MEANT, len(curve) // 10))
    return float(curve.values[:some].mean()), float(curve.values[-some:].mean())


Written: TypeAlias = Callable[[float], str]

KEYS: tuple[tuple[str, str, Written], ...] = (
    ("loss", "Loss", number),
    ("rewards/accuracies", "Reward accuracy", percent),
    ("rewards/margins", "Reward margin", signed),
    ("kl", "Distance from the start", lambda value: number(value, 3)),
)
"""Metrics that count, how they are called, and how they are written."""
NOTES = {"kl": "nats per answer", "rewards/accuracies": "50 % is chance", "": "e to the loss"}
LARGEST_EXPONENT = 700.0
"""Of e, in a float."""
EMPTY_AT_FIRST = ("rewards/accuracies", "rewards/margins", "kl")
"""Without meaning before the first step where there is a reference: policy and reference are the same."""


def _keys(facts: Facts, course: Course) -> list[Key]:
    """The figures that count, of the evaluations where there are any, else of the training."""
    keys = []
    for name, title, written in KEYS:
        for stage in ("eval", "train"):
            if f"{stage}/{name}" in course:
                keys.append(_key(facts, name, stage, course[f"{stage}/{name}"], (title, written)))
                break
    if _is_sft(facts) and keys:
        stage = "eval" if "eval/loss" in course else "train"
        keys.append(_key(facts, "", stage, course[f"{stage}/loss"], ("Perplexity", _perplexity)))
    return keys


def _key(facts: Facts, name: str, stage: str, curve: Curve, shown: tuple[str, Written]) -> Key:
    title, written = shown
    measured = stage == "eval"
    before, now = (float(curve.values[0]), float(curve.values[-1])) if measured else ends(curve)
    empty = measured and name in EMPTY_AT_FIRST and has_reference(facts.config.training_method)
    where = "validation rows" if measured else "training rows, mean of the last steps"
    note = f"{NOTES[name]}; {where}" if name in NOTES else where
    return Key(title, "" if empty or len(curve) < 2 else written(before), written(now), note)


def _perplexity(loss: float) -> str:
    return number(exp(min(loss, LARGEST_EXPONENT)), 3)


def _is_sft(facts: Facts) -> bool:
    return facts.config.training_method.type is MethodType.SFT


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}".removesuffix(".") + "."
