"""The rules of messages and tools, wherever in a row they stand. Pure; each field is judged once.

Keys of a message beyond those named here are no columns: the chat template sees them and takes what it knows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from finetune_api.findings import DataErrorCode as Code
from finetune_trainer.data.images import IMAGE_URL, MAX_IMAGES, check_image
from finetune_trainer.data.rows import Problem, Row

ROLES = frozenset({"system", "user", "assistant", "tool"})
ASSISTANT, USER, SYSTEM = "assistant", "user", "system"
TEXT = "text"
"""Type of a part, and its key."""
REASONING = ("reasoning", "reasoning_content")
TEXT_KEYS = {ASSISTANT: REASONING, "tool": ("tool_call_id", "name")}
"""Keys of a role that hold text where they are given."""


def check_messages(path: str, messages: Any) -> Iterator[Problem]:
    """A non-empty list of messages."""
    if not isinstance(messages, list):
        yield Problem(path, Code.WRONG_TYPE)
    elif not messages:
        yield Problem(path, Code.EMPTY_MESSAGES)
    else:
        for index, message in enumerate(messages):
            yield from check_message(f"{path}[{index}]", message)
        if sum(map(_images, messages)) > MAX_IMAGES:
            yield Problem(path, Code.TOO_MANY_IMAGES)


def check_message(path: str, message: Any) -> Iterator[Problem]:
    """A role that is known, what it says, and perhaps a weight."""
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
        yield from _body(path, role, message)
    weight = message.get("weight")
    if weight is not None and not (isinstance(weight, int) and weight in (0, 1)):
        yield Problem(f"{path}.weight", Code.INVALID_WEIGHT)
    elif weight and _images(message):
        yield Problem(f"{path}.weight", Code.IMAGE_WEIGHTED)


def check_tools(path: str, tools: Any) -> Iterator[Problem]:
    """A list of objects, where there is one."""
    if tools is None:
        return
    if not isinstance(tools, list):
        yield Problem(path, Code.WRONG_TYPE)
        return
    for index, tool in enumerate(tools):
        if not isinstance(tool, dict):
            yield Problem(f"{path}[{index}]", Code.WRONG_TYPE)


def text_of(content: Any) -> str:
    """What a good message says: its text, or that of its parts."""
    if isinstance(content, list):
        return "".join(part["text"] for part in content if part["type"] == TEXT)
    return content or ""


def _images(message: Any) -> int:
    """How many parts of a message say that they are images, whatever else is wrong with it."""
    content = message.get("content") if isinstance(message, dict) else None
    parts = content if isinstance(content, list) else []
    return sum(isinstance(part, dict) and part.get("type") == IMAGE_URL for part in parts)


def _body(path: str, role: str, message: Row) -> Iterator[Problem]:
    """Content, or, from the assistant, calls of tools in its place."""
    calls = message.get("tool_calls") if role == ASSISTANT else None
    content = message.get("content")
    if calls is not None:
        yield from _tool_calls(f"{path}.tool_calls", calls)
    if content is None:
        if calls is None:
            yield Problem(f"{path}.content", Code.MISSING_FIELD)
    else:
        problems = list(_content(f"{path}.content", role, content))
        yield from problems
        if not problems and role == ASSISTANT and calls is None and not text_of(content).strip():
            yield Problem(f"{path}.content", Code.EMPTY_ANSWER)
    for key in TEXT_KEYS.get(role, ()):
        if message.get(key) is not None and not isinstance(message[key], str):
            yield Problem(f"{path}.{key}", Code.WRONG_TYPE)


def _content(path: str, role: str, content: Any) -> Iterator[Problem]:
    """Text, or a list of parts that are text or, from the user, images."""
    if isinstance(content, str):
        return
    if not isinstance(content, list):
        yield Problem(path, Code.WRONG_TYPE)
        return
    for index, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        if not isinstance(kind, str):
            yield Problem(f"{path}[{index}]", Code.WRONG_TYPE)
        elif kind == IMAGE_URL and role == USER:
            yield from check_image(f"{path}[{index}]", part)
        elif kind == IMAGE_URL:
            yield Problem(f"{path}[{index}].type", Code.IMAGE_NOT_FROM_USER)
        elif kind != TEXT:
            yield Problem(f"{path}[{index}].type", Code.UNSUPPORTED_CONTENT)
        elif not isinstance(part.get("text"), str):
            yield Problem(f"{path}[{index}].text", Code.WRONG_TYPE)


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
