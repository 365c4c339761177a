"""Rows as a person compares them: the prompt, both answers, and what training has done to each, the worst first."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from finetune_trainer.out.facts import Answer, Facts, Passage, Sample
from finetune_trainer.out.numerals import aligned, number, signed

GLIMPSE = 76
"""Characters of a prompt in the list."""
ELLIPSIS = "\u2026"


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of text."""

    text: str
    control: bool
    """It is a token of the template, and no text."""


@dataclass(frozen=True, slots=True)
class Told:
    """An answer in words and figures."""

    name: str
    worse: bool
    pieces: list[Piece]
    omitted: int
    tokens: int
    before: str
    after: str
    change: str


@dataclass(frozen=True, slots=True)
class Row:
    """A sample as the page shows it."""

    line: int
    glimpse: str
    images: tuple[str, ...]
    prompt: list[Piece]
    omitted: int
    answers: list[Told]
    gain: str
    """Change of the margin, under SFT of the log-probability a token."""
    lost: bool
    """It changed for the worse."""
    width: float
    """Length of its bar: percent of that of the largest change."""
    margins: tuple[str, str] | None
    """Before and after."""


def rows(facts: Facts) -> list[Row]:
    """The samples, those that got worse first."""
    known = [abs(sample.gain) for sample in facts.samples if sample.gain is not None]
    largest = max(known, default=0.0) or 1.0
    ordered = sorted(facts.samples, key=lambda sample: (math.inf if sample.gain is None else sample.gain, sample.line))
    return [_row(sample, facts.control_tokens, largest) for sample in ordered]


def _row(sample: Sample, control: Sequence[str], largest: float) -> Row:
    gain = sample.gain
    names = ("Preferred", "Non-preferred") if len(sample.answers) == 2 else ("Answer",)
    margins = sample.margin_before, sample.margin_after
    return Row(
        line=sample.line,
        glimpse=_glimpse(sample.prompt, control),
        images=sample.images,
        prompt=pieces(sample.prompt.text, control),
        omitted=sample.prompt.omitted,
        answers=[_told(a, n, i == 1, control) for i, (a, n) in enumerate(zip(sample.answers, names, strict=True))],
        gain="unknown" if gain is None else aligned(gain, largest),
        lost=gain is not None and gain < 0,
        width=0.0 if gain is None else round(100 * abs(gain) / largest, 1),
        margins=(_number(margins[0]), _number(margins[1])) if len(sample.answers) == 2 else None,
    )


def _told(answer: Answer, name: str, worse: bool, control: Sequence[str]) -> Told:
    return Told(
        name=name,
        worse=worse,
        pieces=pieces(answer.passage.text, control),
        omitted=answer.passage.omitted,
        tokens=answer.tokens,
        before=_number(answer.before),
        after=_number(answer.after),
        change=_signed(answer.change),
    )


def pieces(text: str, control: Sequence[str]) -> list[Piece]:
    """`text` with the tokens that are no text set apart."""
    if not control:
        return [Piece(text, False)]
    longest_first = sorted(control, key=len, reverse=True)
    parts = re.split(f"({'|'.join(map(re.escape, longest_first))})", text)
    return [Piece(part, i % 2 == 1) for i, part in enumerate(parts) if part]


def _glimpse(prompt: Passage, control: Sequence[str]) -> str:
    """The last words of the prompt that are text, on one line."""
    words = " ".join(part for piece in pieces(prompt.text, control) if not piece.control for part in piece.text.split())
    return words if len(words) <= GLIMPSE else ELLIPSIS + words[-GLIMPSE:]


def _number(value: float | None) -> str:
    return "unknown" if value is None else number(value, 4)


def _signed(value: float | None) -> str:
    return "unknown" if value is None else signed(value)
