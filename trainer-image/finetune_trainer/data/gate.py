"""The rules that a row must meet before it is rendered: columns, types, roles, order, answers. Pure, one row at a time.

A row may break several rules; each field is judged once, so that one mistake gives one error.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import StrEnum
from typing import Any

from finetune_api.report import DataErrorCode as Code
from finetune_trainer.data.rows import Problem, Row

ROLES = frozenset({"system", "user", "assistant", "tool"})
ASSISTANT = "assistant"
MESSAGE_KEYS = frozenset({"role", "content"})
KEYS_OF_ROLE = {ASSISTANT: frozenset({"tool_calls"}), "tool": frozenset({"tool_call_id", "name"})}
SPEAKABLE = re.compile(r"[A-Za-z0-9_-]{1,40}")


class Format(StrEnum):
    """What the rows of a file are, told by their columns."""

    PREFERENCE = "preference"
    CONVERSATION = "conversation"


COLUMNS = {
    Format.PREFERENCE: frozenset({"input", "preferred_output", "non_preferred_output"}),
    Format.CONVERSATION: frozenset({"messages"}),
}
OPTIONAL_COLUMNS = {Format.PREFERENCE: frozenset[str](), Format.CONVERSATION: frozenset({"tools"})}


def format_of(row: Row, expected: Format | None) -> Format | None:
    """The format whose columns the row has some of; `expected` goes first, None is none."""
    found = [form for form, columns in COLUMNS.items() if columns & row.keys()]
    return expected if expected in found else next(iter(found), None)


def check_row(row: Row, form: Format) -> list[Problem]:
    """Everything that is wrong with a row of `form`; empty when it may be rendered."""
    rules = _preference if form is Format.PREFERENCE else _conversation
    return [*_extra_keys("", row, COLUMNS[form] | OPTIONAL_COLUMNS[form]), *rules(row)]


def _preference(row: Row) -> Iterator[Problem]:
    """`input` with messages that end before the answer, and two different answers to it."""
    yield from _missing("", row, ("input", "preferred_output", "non_preferred_output"))
    yield from _input(row)
    answers = []
    for column in ("preferred_output", "non_preferred_output"):
        if column in row:
            problems = list(_output(column, row[column]))
            yield from problems
            answers.append(None if problems else row[column][0])
    if len(answers) == 2 and answers[0] is not None and answers[0] == answers[1]:
        yield Problem("non_preferred_output", Code.IDENTICAL_ANSWERS)


def _conversation(row: Row) -> Iterator[Problem]:
    """`messages` with something to learn, and perhaps tools."""
    yield from _missing("", row, ("messages",))
    yield from _tools("tools", row.get("tools"))
    if "messages" not in row:
        return
    problems = list(_messages("messages", row["messages"]))
    yield from problems
    if not problems and all(message["role"] != ASSISTANT for message in row["messages"]):
        yield Problem("messages", Code.NO_ASSISTANT_MESSAGE)


def _input(row: Row) -> Iterator[Problem]:
    if "input" not in row:
        return
    prompt = row["input"]
    if not isinstance(prompt, dict):
        yield Problem("input", Code.WRONG_TYPE)
        return
    yield from _extra_keys("input.", prompt, frozenset({"messages", "tools"}))
    yield from _missing("input.", prompt, ("messages",))
    yield from _tools("input.tools", prompt.get("tools"))
    if "messages" not in prompt:
        return
    yield from _messages("input.messages", prompt["messages"])
    if isinstance(prompt["messages"], list) and prompt["messages"]:
        last = prompt["messages"][-1]
        if isinstance(last, dict) and last.get("role") == ASSISTANT:
            yield Problem(f"input.messages[{len(prompt['messages']) - 1}].role", Code.LAST_MESSAGE_FROM_ASSISTANT)


def _output(path: str, output: Any) -> Iterator[Problem]:
    """A list of exactly one message from the assistant, with content."""
    if not isinstance(output, list):
        yield Problem(path, Code.WRONG_TYPE)
    elif len(output) != 1:
        yield Problem(path, Code.NOT_ONE_ASSISTANT_MESSAGE)
    else:
        message = output[0]
        role = message.get("role") if isinstance(message, dict) else None
        if isinstance(role, str) and role in ROLES and role != ASSISTANT:
            yield Problem(f"{path}[0].role", Code.NOT_ONE_ASSISTANT_MESSAGE)
        else:
            yield from _message(f"{path}[0]", message)


def _messages(path: str, messages: Any) -> Iterator[Problem]:
    if not isinstance(messages, list):
        yield Problem(path, Code.WRONG_TYPE)
    elif not messages:
        yield Problem(path, Code.EMPTY_MESSAGES)
    else:
        for index, message in enumerate(messages):
            yield from _message(f"{path}[{index}]", message)


def _message(path: str, message: Any) -> Iterator[Problem]:
    if not isinstance(message, dict):
        yield Problem(path, Code.WRONG_TYPE)
        return
    role = message.get("role")
    if role is None:
        yield Problem(f"{path}.role", Code.MISSING_FIELD)
    elif not isinstance(role, str):
        yield Problem(f"{path}.role", Code.WRONG_TYPE)
    elif role not in ROLES:
        yield Problem(f"{path}.role", Code.INVALID_ROLE)
    else:
        yield from _extra_keys(f"{path}.", message, MESSAGE_KEYS | KEYS_OF_ROLE.get(role, frozenset()))
        yield from _body(path, role, message)


def _body(path: str, role: str, message: Row) -> Iterator[Problem]:
    """Content, or, from the assistant, calls of tools in its place."""
    calls = message.get("tool_calls") if role == ASSISTANT else None
    content = message.get("content")
    if calls is not None:
        yield from _tool_calls(f"{path}.tool_calls", calls)
    if content is None:
        if calls is None:
            yield Problem(f"{path}.content", Code.MISSING_FIELD)
    elif not isinstance(content, str):
        yield Problem(f"{path}.content", Code.WRONG_TYPE)
    elif role == ASSISTANT and calls is None and not content.strip():
        yield Problem(f"{path}.content", Code.EMPTY_ANSWER)
    for key in ("tool_call_id", "name"):
        if role == "tool" and key in message and not isinstance(message[key], str):
            yield Problem(f"{path}.{key}", Code.WRONG_TYPE)


def _tool_calls(path: str, calls: Any) -> Iterator[Problem]:
    """A non-empty list of `{"function": {"name": ..., "arguments": ...}}`."""
    if not isinstance(calls, list) or not calls:
        yield Problem(path, Code.WRONG_TYPE)
        return
    for index, call in enumerate(calls):
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict):
            yield Problem(f"{path}[{index}].function", Code.WRONG_TYPE)
        elif not isinstance(function.get("name"), str) or not function["name"]:
            yield Problem(f"{path}[{index}].function.name", Code.WRONG_TYPE)
        elif not isinstance(function.get("arguments", {}), dict | str):
            yield Problem(f"{path}[{index}].function.arguments", Code.WRONG_TYPE)


def _tools(path: str, tools: Any) -> Iterator[Problem]:
    if tools is None:
        return
    if not isinstance(tools, list):
        yield Problem(path, Code.WRONG_TYPE)
        return
    for index, tool in enumerate(tools):
        if not isinstance(tool, dict):
            yield Problem(f"{path}[{index}]", Code.WRONG_TYPE)


def _missing(path: str, row: Row, columns: tuple[str, ...]) -> Iterator[Problem]:
    yield from (Problem(f"{path}{column}", Code.MISSING_FIELD) for column in columns if column not in row)


def _extra_keys(path: str, row: Row, known: frozenset[str]) -> Iterator[Problem]:
    """Keys beyond the known ones. A key that is no plain word is content, and a report never quotes content."""
    for key in row:
        if key not in known:
            yield Problem(f"{path}{key if SPEAKABLE.fullmatch(key) else '?'}", Code.EXTRA_COLUMN)
