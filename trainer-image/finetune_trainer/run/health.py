"""Warnings about a run that trains, and yet goes wrong: pure, from the numbers of each step.

Steps are gathered into windows, one after the other, of at least 20 steps and 256 pairs: below that the noise of a
step is larger than what is looked for. Each warning is given once, with its step and numbers. How much a window's mean
may differ by chance is known from the spread of its steps: a standard error is that spread divided by the root of
their number.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from statistics import variance

from finetune_api.report import WarningCode

WINDOW_STEPS, WINDOW_PAIRS = 20, 256
FEW_STEPS = 50
FALLEN_SHARE, FALLEN_NATS, FALLEN_WINDOWS = 0.1, 20.0, 2
EASY_ACCURACY, EASY_SHARE = 0.995, 0.1
LEARNING_SHARE = 1 / 3
ERRORS = 2.0
"""Standard errors that a difference must have to be no chance."""
KEPT_NORMS = 20
LOOKED_AT = ("logps/chosen", "rewards/margins", "rewards/accuracies")


@dataclass(frozen=True, slots=True)
class Observed:
    """What counts of a step: means over its pairs."""

    step: int
    pairs: int
    chosen: float
    margin: float
    accuracy: float


@dataclass(frozen=True, slots=True)
class Window:
    """A window in numbers."""

    first: int
    last: int
    """Its steps."""
    chosen: float
    """Mean log-probability of the preferred answers."""
    chosen_error: float
    """Standard error of it."""
    margin: float
    margin_error: float
    accuracy: float


@dataclass(frozen=True, slots=True)
class Finding:
    """A warning."""

    code: WarningCode
    message: str


@dataclass(frozen=True, slots=True)
class Health:
    """What has been seen so far."""

    steps: tuple[Observed, ...] = ()
    """Of the window that is being filled."""
    first: Window | None = None
    before: Window | None = None
    """The newest full window."""
    fallen: int = 0
    """Windows in which the preferred answers had fallen while the margin grew."""
    told: tuple[WarningCode, ...] = ()
    norms: tuple[float, ...] = ()
    """Of the newest steps, those that were finite."""


def few_steps(total: int, batch_size: int, rows: int) -> Finding | None:
    """The warning that a run is too short to learn much."""
    if total >= FEW_STEPS:
        return None
    message = (
        f"the whole run is {total} optimiser steps ({rows} rows, batchSize {batch_size}); below {FEW_STEPS} little is"
        " learned: lower batchSize or raise nEpochs"
    )
    return Finding(WarningCode.FEW_STEPS, message)


def observe(
    health: Health, step: int, total: int, pairs: int, values: Mapping[str, float]
) -> tuple[Health, tuple[Finding, ...]]:
    """What is known after one more step, and what it gives reason to say.

    Args:
        step: counted from 1, of `total`.
        pairs: how many the step had.
        values: the step's metrics, by their names in metrics.jsonl. Those of SFT say nothing here.
    """
    norm = values.get("grad_norm", math.nan)
    if not math.isfinite(norm):
        return health, ()
    health = replace(health, norms=(*health.norms, norm)[-KEPT_NORMS:])
    found = [values.get(name, math.nan) for name in LOOKED_AT]
    if not all(map(math.isfinite, found)):
        return health, ()
    health = replace(health, steps=(*health.steps, Observed(step, pairs, *found)))
    if len(health.steps) < WINDOW_STEPS or sum(s.pairs for s in health.steps) < WINDOW_PAIRS:
        return health, ()
    return _after_window(replace(health, steps=()), _window(health.steps), total)


def _after_window(health: Health, window: Window, total: int) -> tuple[Health, tuple[Finding, ...]]:
    fallen = health.fallen + _has_fallen(health, window)
    findings = [
        *([_falling(health.first, window)] if health.first and fallen >= FALLEN_WINDOWS else []),
        *([_too_easy(window, total)] if _is_too_easy(window, total) else []),
        *([_no_learning(window, total)] if _learns_nothing(health, window, total) else []),
    ]
    new = tuple(finding for finding in findings if finding.code not in health.told)
    told = (*health.told, *(finding.code for finding in new))
    return replace(health, first=health.first or window, before=window, fallen=fallen, told=told), new


def _has_fallen(health: Health, window: Window) -> bool:
    """Preferred answers more than 10 % or 20 nats less likely than at first, beyond chance, while the margin grows."""
    first, before = health.first, health.before
    if first is None or before is None or window.margin <= before.margin:
        return False
    noise = ERRORS * math.hypot(first.chosen_error, window.chosen_error)
    return first.chosen - window.chosen > max(min(FALLEN_SHARE * abs(first.chosen), FALLEN_NATS), noise)


def _is_too_easy(window: Window, total: int) -> bool:
    return window.first <= EASY_SHARE * total and window.accuracy >= EASY_ACCURACY


def _learns_nothing(health: Health, window: Window, total: int) -> bool:
    """Looked at once, in the first window that ends after a third: chance has one throw."""
    late = LEARNING_SHARE * total
    is_first = window.last >= late and (health.before is None or health.before.last < late)
    return is_first and abs(window.margin) <= ERRORS * window.margin_error


def _falling(first: Window, window: Window) -> Finding:
    message = (
        f"the preferred answers became less likely while the margin grew: logps/chosen fell from {first.chosen:.4g}"
        f" (steps {first.first}-{first.last}) to {window.chosen:.4g} (steps {window.first}-{window.last}); if the"
        " answers get worse, raise dpo.beta, lower learningRate, or set dpo.rpoAlpha"
    )
    return Finding(WarningCode.CHOSEN_LOGPS_FALLING, message)


def _too_easy(window: Window, total: int) -> Finding:
    message = (
        f"{window.accuracy:.1%} of the pairs were already right in steps {window.first}-{window.last} of {total}:"
        " little is left to learn; look whether length or format alone tells the answers apart"
    )
    return Finding(WarningCode.TOO_EASY, message)


def _no_learning(window: Window, total: int) -> Finding:
    message = (
        f"the margin cannot be told from 0 in steps {window.first}-{window.last} of {total}: {window.margin:.3g},"
        f" standard error {window.margin_error:.3g}; raise learningRate, or look whether the preferences are consistent"
    )
    return Finding(WarningCode.NO_LEARNING, message)


def _window(steps: tuple[Observed, ...]) -> Window:
    pairs = sum(s.pairs for s in steps)

    def mean(name: str) -> float:
        return math.fsum(s.pairs * getattr(s, name) for s in steps) / pairs

    def error(name: str) -> float:
        return math.sqrt(variance([getattr(s, name) for s in steps]) / len(steps))

    return Window(
        first=steps[0].step,
        last=steps[-1].step,
        chosen=mean("chosen"),
        chosen_error=error("chosen"),
        margin=mean("margin"),
        margin_error=error("margin"),
        accuracy=mean("accuracy"),
    )
