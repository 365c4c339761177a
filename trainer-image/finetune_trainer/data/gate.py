"""The rules that a row must meet before it is rendered: columns, types, roles, order, answers. Pure, one row at a time.

A row may break several rules; each field is judged once, so that one mistake gives one error.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from finetune_api.findings import DataErrorCode as Code
from finetune_trainer.data.messages import ASSISTANT, ROLES, USER, check_message, check_messages, check_tools
from finetune_trainer.data.rows import Problem, Row

SPEAKABLE = re.compile(r"[A-Za-z0-9_-]{1,40}")
TOKEN_IDS = "input_ids"
OUTPUTS = ("preferred_output", "non_preferred_output")
CHOICES = ("chosen", "rejected")


class Format(StrEnum):
    """What the rows of a file are for."""

    PREFERENCE = "preference"
    CONVERSATION = "conversation"
    INSTRUCTION = "instruction"
    TEXT = "text"


@dataclass(frozen=True, slots=True)
class Shape:
    """The columns of a format; preference has two sets of them."""

    format: Format
    needed: tuple[str, ...]
    prompt: str
    """Field that holds the prompt."""
    answers: tuple[str, str]
    """Fields of the answer and of the worse one; twice the same where there is no worse one."""
    optional: frozenset[str] = frozenset({"weight"})


WITH_TOOLS = frozenset({"weight", "tools"})
PREFERENCE = Shape(Format.PREFERENCE, ("input", *OUTPUTS), "input.messages", OUTPUTS)
CHOSEN = Shape(Format.PREFERENCE, ("prompt", *CHOICES), "prompt", CHOICES, WITH_TOOLS)
CONVERSATION = Shape(Format.CONVERSATION, ("messages",), "messages", ("messages", "messages"), WITH_TOOLS)
INSTRUCTION = Shape(Format.INSTRUCTION, ("prompt", "completion"), "prompt", ("completion", "completion"))
TEXT = Shape(Format.TEXT, ("text",), "text", ("text", "text"))
SHAPES = (PREFERENCE, CHOSEN, CONVERSATION, INSTRUCTION, TEXT)
COLUMNS = frozenset(column for shape in SHAPES for column in (*shape.needed, *shape.optional))
"""Every column that some format has."""


def shape_of(row: Row, expected: Shape | None) -> Shape | None:
    """The shape whose columns the row has, all of them if there is such a shape, else most; None = it has none.

    `expected`, that of the file's first row, goes before others.
    """
    if expected is not None and all(column in row for column in expected.needed):
        return expected
    shares = {shape: sum(column in row for column in shape.needed) / len(shape.needed) for shape in SHAPES}
    whole = [shape for shape in SHAPES if shares[shape] == 1]
    if whole:
        return whole[0]
    if expected is not None and shares[expected]:
        return expected
    best = max(SHAPES, key=shares.__getitem__)
    return best if shares[best] else None


def check_row(row: Row, shape: Shape, *, extra_columns: bool = False) -> list[Problem]:
    """Everything that is wrong with a row of `shape`; empty when it may be rendered.

    Args:
        extra_columns: columns that the format does not have are passed over.
    """
    problems = [] if extra_columns else list(_extra_keys("", row, {*shape.needed, *shape.optional}))
    problems += (Problem(column, Code.MISSING_FIELD) for column in shape.needed if row.get(column) is None)
    problems += _weight(row.get("weight"))
    problems += RULES[shape](row, extra_columns)
    return problems


def _preference(row: Row, extra_columns: bool) -> Iterator[Problem]:
    """`input` with messages that end before the answer, and two different answers to it."""
    yield from _input(row.get("input"), extra_columns)
    answers = []
    for column in OUTPUTS:
        if row.get(column) is not None:
            problems = list(_output(column, row[column]))
            yield from problems
            answers.append(None if problems else said(row[column][0]))
    if len(answers) == 2 and answers[0] is not None and answers[0] == answers[1]:
        yield Problem(OUTPUTS[1], Code.IDENTICAL_ANSWERS)


def _input(prompt: Any, extra_columns: bool) -> Iterator[Problem]:
    if prompt is None:
        return
    if not isinstance(prompt, dict):
        yield Problem("input", Code.WRONG_TYPE)
        return
    if not extra_columns:
        yield from _extra_keys("input.", prompt, {"messages", "tools"})
    yield from check_tools("input.tools", prompt.get("tools"))
    messages = prompt.get("messages")
    if messages is None:
        yield Problem("input.messages", Code.MISSING_FIELD)
    else:
        yield from _prompt("input.messages", messages)


def _prompt(path: str, messages: Any) -> Iterator[Problem]:
    """Messages of which the last is not the answer."""
    yield from check_messages(path, messages)
    if isinstance(messages, list) and messages and _role(messages[-1]) == ASSISTANT:
        yield Problem(f"{path}[{len(messages) - 1}].role", Code.LAST_MESSAGE_FROM_ASSISTANT)


def _output(path: str, output: Any, begin: int = 0) -> Iterator[Problem]:
    """A list whose messages from `begin` on are exactly one from the assistant, with content."""
    if not isinstance(output, list):
        yield Problem(path, Code.WRONG_TYPE)
    elif len(output) != begin + 1:
        yield Problem(path, Code.NOT_ONE_ASSISTANT_MESSAGE)
    else:
        role = _role(output[begin])
        if role in ROLES and role != ASSISTANT:
            yield Problem(f"{path}[{begin}].role", Code.NOT_ONE_ASSISTANT_MESSAGE)
        else:
            yield from check_message(f"{path}[{begin}]", output[begin])


def _chosen(row: Row, extra_columns: bool) -> Iterator[Problem]:
    """`prompt`, `chosen` and `rejected`: texts, or lists of messages, where the prompt may be the text of one."""
    yield from check_tools("tools", row.get("tools"))
    prompt = row.get("prompt")
    answers = {column: row[column] for column in CHOICES if row.get(column) is not None}
    if isinstance(prompt, list):
        yield from _prompt("prompt", prompt)
    elif not isinstance(prompt, str | None):
        yield Problem("prompt", Code.WRONG_TYPE)
    if not isinstance(prompt, list) and all(isinstance(answer, str) for answer in answers.values()):
        yield from _texts(answers)
        return
    good = []
    for column, answer in answers.items():
        problems = list(_output(column, answer, repeated(prompt, answer)))
        yield from problems
        good += [] if problems else [said(answer[-1])]
    if len(good) == 2 and good[0] == good[1]:
        yield Problem(CHOICES[1], Code.IDENTICAL_ANSWERS)


def _texts(answers: dict[str, str]) -> Iterator[Problem]:
    empty = [column for column, answer in answers.items() if not answer.strip()]
    yield from (Problem(column, Code.EMPTY_ANSWER) for column in empty)
    if len(answers) == 2 and not empty and answers[CHOICES[0]] == answers[CHOICES[1]]:
        yield Problem(CHOICES[1], Code.IDENTICAL_ANSWERS)


def repeated(prompt: Any, answer: Any) -> int:
    """How many messages at the beginning of `answer` repeat the prompt: all of the prompt's, or none."""
    messages = prompt_messages(prompt)
    if not isinstance(answer, list) or len(answer) <= len(messages):
        return 0
    alike = all(said(mine) == said(theirs) for mine, theirs in zip(messages, answer, strict=False))
    return len(messages) if alike else 0


def prompt_messages(prompt: Any) -> list[Any]:
    """A prompt as messages: a text is what the user says."""
    if isinstance(prompt, str):
        return [{"role": USER, "content": prompt}]
    return prompt if isinstance(prompt, list) else []


def said(message: Any) -> Any:
    """A message without what is as good as absent: two that say the same are equal."""
    if not isinstance(message, dict):
        return message
    return {key: value for key, value in message.items() if value is not None and key != "weight"}


def _conversation(row: Row, extra_columns: bool) -> Iterator[Problem]:
    """`messages` with something to learn, and perhaps tools."""
    yield from check_tools("tools", row.get("tools"))
    if row.get("messages") is None:
        return
    problems = list(check_messages("messages", row["messages"]))
    yield from problems
    if not problems and all(message["role"] != ASSISTANT for message in row["messages"]):
        yield Problem("messages", Code.NO_ASSISTANT_MESSAGE)


def _instruction(row: Row, extra_columns: bool) -> Iterator[Problem]:
    """Two texts, of which the second is learned."""
    if row.get("prompt") is not None and not isinstance(row["prompt"], str):
        yield Problem("prompt", Code.WRONG_TYPE)
    yield from _answer_text("completion", row.get("completion"))


def _text(row: Row, extra_columns: bool) -> Iterator[Problem]:
    """One text, all of which is learned."""
    yield from _answer_text("text", row.get("text"))


def _answer_text(column: str, text: Any) -> Iterator[Problem]:
    if text is None:
        return
    if not isinstance(text, str):
        yield Problem(column, Code.WRONG_TYPE)
    elif not text.strip():
        yield Problem(column, Code.EMPTY_ANSWER)


RULES = {
    PREFERENCE: _preference,
    CHOSEN: _chosen,
    CONVERSATION: _conversation,
    INSTRUCTION: _instruction,
    TEXT: _text,
}


def _role(message: Any) -> Any:
    role = message.get("role") if isinstance(message, dict) else None
    return role if isinstance(role, str) else None


def _weight(weight: Any) -> Iterator[Problem]:
    """A factor of the row's loss: a finite number, not below 0. Compared as numbers, as an integer may be huge."""
    if weight is None:
        return
    number = isinstance(weight, int | float) and not isinstance(weight, bool)
    if not (number and 0 <= weight <= sys.float_info.max):
        yield Problem("weight", Code.INVALID_WEIGHT)


def _extra_keys(path: str, row: Row, known: set[str]) -> Iterator[Problem]:
    """Keys beyond the known ones. A key that is no plain word is content, and a report never quotes content."""
    for key in row:
        if key == TOKEN_IDS:
            yield Problem(f"{path}{key}", Code.PRETOKENISED)
        elif key not in known:
            yield Problem(f"{path}{key if SPEAKABLE.fullmatch(key) else '?'}", Code.EXTRA_COLUMN)
