"""Good rows of every shape as what can be tokenised: a pair or a conversation, in messages or in text."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from finetune_api.method import MethodType
from finetune_trainer.data.gate import (
    CHOICES,
    CHOSEN,
    CONVERSATION,
    INSTRUCTION,
    OUTPUTS,
    PREFERENCE,
    Shape,
    prompt_messages,
    repeated,
)
from finetune_trainer.data.images import IMAGE_URL, images_in
from finetune_trainer.data.images import for_template as image_for_template
from finetune_trainer.data.messages import ASSISTANT, REASONING, text_of
from finetune_trainer.data.rows import Row

DIGEST_BYTES = 16
Tools: TypeAlias = list[Row] | None


@dataclass(frozen=True, slots=True)
class ChatPair:
    """Messages, and two different messages to answer them."""

    messages: tuple[Row, ...]
    tools: Tools
    preferred: Row
    non_preferred: Row


@dataclass(frozen=True, slots=True)
class TextPair:
    """A text, and two different texts that go on with it."""

    prompt: str
    preferred: str
    non_preferred: str


@dataclass(frozen=True, slots=True)
class Talk:
    """Messages of which some are learned."""

    messages: tuple[Row, ...]
    tools: Tools
    learned: tuple[int, ...]
    """Indexes of the assistant's messages that have not weight 0."""
    last_counts: bool = False
    """The last message is what the row is for: it was the preferred answer."""

    def until_learned(self) -> Talk:
        """The same without the messages after the last that is learned."""
        return replace(self, messages=self.messages[: self.learned[-1] + 1])


@dataclass(frozen=True, slots=True)
class Text:
    """A text that is learned, after a prompt that may be empty."""

    prompt: str
    answer: str
    stands_alone: bool = False
    """There is no prompt, so that not even an empty one is asked for."""


Example: TypeAlias = ChatPair | TextPair | Talk | Text


def example_of(row: Row, shape: Shape, method: MethodType | None) -> Example:
    """What a good row of `shape` is for `method`: SFT learns the preferred answer of a pair; None leaves pairs be."""
    if shape is INSTRUCTION:
        return Text(row["prompt"], row["completion"])
    if shape is CONVERSATION:
        return _talk(row["messages"], row.get("tools"))
    if shape is PREFERENCE:
        messages, tools = row["input"]["messages"], row["input"].get("tools")
        answers = [row[column][0] for column in OUTPUTS]
    elif shape is CHOSEN and isinstance(row["chosen"], list):
        messages, tools = prompt_messages(row["prompt"]), row.get("tools")
        answers = [row[column][repeated(row["prompt"], row[column])] for column in CHOICES]
    elif shape is CHOSEN:
        pair = TextPair(row["prompt"], row["chosen"], row["rejected"])
        return pair if method is not MethodType.SFT else Text(pair.prompt, pair.preferred)
    else:
        return Text("", row["text"], stands_alone=True)
    if method is MethodType.SFT:
        return _talk([*messages, answers[0]], tools, last_counts=True)
    return ChatPair(tuple(map(for_template, messages)), tools or None, *map(for_template, answers))


def _talk(messages: list[Row], tools: Tools, last_counts: bool = False) -> Talk:
    learned = (i for i, m in enumerate(messages) if m["role"] == ASSISTANT and m.get("weight") != 0)
    return Talk(tuple(map(for_template, messages)), tools or None, tuple(learned), last_counts)


def for_template(message: Row) -> Row:
    """A message in the shape that templates expect: no nulls, no weight, arguments as objects, content as text.
    Content with images stays a list.

    Data sets hold the arguments of calls as JSON text, as the chat APIs return them; templates print them with
    `tojson`, which would quote that text a second time. Reasoning has two names in data sets; templates know one.
    """
    given = {key: value for key, value in message.items() if value is not None and key != "weight"}
    given["content"] = _content(given.get("content"))
    reasoning = [given[key] for key in REASONING if key in given]
    if reasoning:
        given["reasoning_content"] = reasoning[-1]
    if given["role"] == ASSISTANT and "tool_calls" in given:  # nobody judged those of others
        given["tool_calls"] = [_call(call) for call in given["tool_calls"]]
    return given


def _content(content: Any) -> Any:
    parts = content if isinstance(content, list) else []
    if all(part["type"] != IMAGE_URL for part in parts):
        return text_of(content)
    return [image_for_template(p) if p["type"] == IMAGE_URL else {"type": p["type"], "text": p["text"]} for p in parts]


def _call(call: Row) -> Row:
    return {**call, "function": {**call["function"], "arguments": _parsed(call["function"].get("arguments", {}))}}


def _parsed(arguments: Any) -> Any:
    if not isinstance(arguments, str):
        return arguments
    try:
        return json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments


def texts(example: Example) -> Iterator[str]:
    """What the example says, message by message."""
    match example:
        case ChatPair():
            messages = (*example.messages, example.preferred, example.non_preferred)
            yield from (text_of(message["content"]) for message in messages)
        case Talk():
            yield from (text_of(message["content"]) for message in example.messages)
        case TextPair():
            yield from (example.prompt, example.preferred, example.non_preferred)
        case Text():
            yield from (example.prompt, example.answer)


def images_of(example: Example) -> list[Row]:
    """The images that a model sees of it, in order, as they are in its messages."""
    return images_in(example.messages) if isinstance(example, ChatPair | Talk) else []


def digest_of(example: Example, weight: float) -> bytes:
    """16 bytes that tell rows apart, whatever the order of their keys and the columns that they came in.

    Raises:
        UnicodeEncodeError: a text holds half of a surrogate pair, which no encoding can write.
    """
    return _digest([*_parts(example), weight])


def prompt_digest_of(example: Example) -> bytes | None:
    """16 bytes that tell prompts apart; None where there is none.

    Raises:
        UnicodeEncodeError: as `digest_of`.
    """
    match example:
        case ChatPair():
            return _digest([example.messages, example.tools])
        case Talk():
            last = max(i for i, message in enumerate(example.messages) if message["role"] == ASSISTANT)
            return _digest([example.messages[:last], example.tools])
        case _:
            return _digest([example.prompt]) if example.prompt else None


def _parts(example: Example) -> list[Any]:
    match example:
        case ChatPair():
            return [example.messages, example.tools, example.preferred, example.non_preferred]
        case TextPair():
            return [example.prompt, example.preferred, example.non_preferred]
        case Talk():
            return [example.messages, example.tools, example.learned]
        case Text():
            return [example.prompt, example.answer]


def _digest(value: object) -> bytes:
    text = _ENCODER.encode(value).encode()
    return hashlib.blake2b(text, digest_size=DIGEST_BYTES).digest()


_ENCODER = json.JSONEncoder(sort_keys=True, ensure_ascii=False, separators=(",", ":"))
