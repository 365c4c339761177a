"""The tokenizer and chat template of a model: rendering messages, and where an answer begins.

Prompt and answer are never tokenised apart and glued together: the whole is rendered and tokenised as inference will
do it, and the border is found in the tokens. Templates are sandboxed by transformers; torch is not needed for any of
this and not imported.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from transformers import PreTrainedTokenizerFast

from finetune_api.report import DataErrorCode as Code
from finetune_trainer.data.gate import ASSISTANT
from finetune_trainer.data.rows import Problem, Row
from finetune_trainer.data.tokens import BoolArray, IntArray

MAX_HEADER_TOKENS = 8
"""Tokens by which a whole rendering may leave the prompt's before its end: the tail of the generation header."""
GENERATION_MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")
TEMPLATE_ERRORS = (
    jinja2.TemplateError,
    TypeError,
    ValueError,
    LookupError,
    ArithmeticError,
    AttributeError,
    RecursionError,
)
"""What a template may raise on messages that it does not like: its own exceptions and those of any expression."""


class RowRefused(Exception):
    """The row cannot be rendered or has no clear answer."""

    def __init__(self, field: str, code: Code) -> None:
        super().__init__(code)
        self.problem = Problem(field, code)


@dataclass(frozen=True, slots=True)
class Rendered:
    """A text with its tokens; `ends[i]` is the character after token i."""

    text: str
    tokens: IntArray
    ends: IntArray


@dataclass(frozen=True, slots=True)
class TokenisedPair:
    """The parts of a preference row, as in `tokens.Pair`."""

    prompt: IntArray
    preferred: IntArray
    non_preferred: IntArray


@dataclass(frozen=True, slots=True)
class TokenisedConversation:
    """A conversation and what of it is trained, as in `tokens.Conversation`."""

    tokens: IntArray
    targets: BoolArray
    last_turn_only: bool
    """True if there are more answers, which the template renders differently once the conversation goes on."""


class ChatTokenizer:
    """A tokenizer with its chat template.

    Raises RowRefused for a row that the template refuses or in which the answer's first token is unclear.
    """

    def __init__(self, folder: Path) -> None:
        self.tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
        self.encoder = self.tokenizer.backend_tokenizer
        self.encoder.no_truncation()
        self.encoder.no_padding()
        template = self.tokenizer.chat_template
        self.has_template = bool(template)
        self.marks_generation = isinstance(template, str) and GENERATION_MARK.search(template) is not None

    @property
    def digest(self) -> str:
        """SHA-256 over vocabulary, template and special tokens: everything that turns messages into ids."""
        parts = [self.encoder.to_str(), self.tokenizer.chat_template, self.tokenizer.special_tokens_map]
        return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()

    def pair(self, messages: list[Row], tools: list[Row] | None, preferred: Row, non_preferred: Row) -> TokenisedPair:
        """A preference row. The border is the longest common prefix of the prompt and both whole renderings."""
        whole = [self._text([*messages, answer], tools) for answer in (preferred, non_preferred)]
        prompt, *sides = self._encode([self._text(messages, tools, generate=True), *whole])
        border = min(common_prefix(prompt, side) for side in sides)
        self._judge_border(border, prompt, messages, tools)
        answers = [side[border:] for side in sides]
        for field, answer in zip(("preferred_output", "non_preferred_output"), answers, strict=True):
            if answer.size == 0:
                raise RowRefused(field, Code.EMPTY_ANSWER)
        if np.array_equal(answers[0], answers[1]):
            raise RowRefused("non_preferred_output", Code.IDENTICAL_ANSWERS)
        return TokenisedPair(prompt[:border], answers[0], answers[1])

    def conversation(self, messages: list[Row], tools: list[Row] | None) -> TokenisedConversation:
        """A conversation; messages after the last answer are left out, as nothing is learned from them."""
        turns = [index for index, message in enumerate(messages) if message["role"] == ASSISTANT]
        messages = messages[: turns[-1] + 1]
        row = self._by_mark(messages, tools) if self.marks_generation else self._by_rendering(messages, turns, tools)
        if not row.targets.any():
            raise RowRefused("messages", Code.EMPTY_ANSWER)
        return row

    def _by_mark(self, messages: list[Row], tools: list[Row] | None) -> TokenisedConversation:
        """The template says itself which tokens are the assistant's."""
        try:
            marked = self.tokenizer.apply_chat_template(
                messages, tools=tools, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
            )
        except TEMPLATE_ERRORS as error:
            raise RowRefused("messages", Code.TEMPLATE_REFUSED) from error
        targets = np.array(marked["assistant_masks"], dtype=np.bool_)
        targets[:1] = False
        return TokenisedConversation(np.array(marked["input_ids"], dtype=np.int32), targets, last_turn_only=False)

    def _by_rendering(self, messages: list[Row], turns: list[int], tools: list[Row] | None) -> TokenisedConversation:
        """Every answer is what the rendering grows by; if one is rendered differently later, only the last counts."""
        whole = self._render(messages, tools)
        targets = np.zeros(whole.tokens.size, dtype=np.bool_)
        spans = [self._span(messages[: turn + 1], whole, tools) for turn in turns[:-1]]
        last_turn_only = None in spans
        kept = [] if last_turn_only else [span for span in spans if span is not None]
        for begin, end in [*kept, (self._border(messages[:-1], whole, tools), whole.tokens.size)]:
            targets[begin:end] = True
        return TokenisedConversation(whole.tokens, targets, last_turn_only)

    def _span(self, messages: list[Row], whole: Rendered, tools: list[Row] | None) -> tuple[int, int] | None:
        """Where the last of `messages` lies in the tokens of `whole`, or None if it is rendered differently there."""
        try:
            through = self._text(messages, tools)
            begin = self._border(messages[:-1], whole, tools)
        except RowRefused:
            return None
        if not whole.text.startswith(through):
            return None
        return begin, int(np.searchsorted(whole.ends, len(through), side="right"))

    def _border(self, messages: list[Row], whole: Rendered, tools: list[Row] | None) -> int:
        prompt = self._encode([self._text(messages, tools, generate=True)])[0]
        border = common_prefix(prompt, whole.tokens)
        self._judge_border(border, prompt, messages, tools)
        return border

    def _judge_border(self, border: int, prompt: IntArray, messages: list[Row], tools: list[Row] | None) -> None:
        """A border before the prompt's end must lie in the generation header, and there near its end."""
        if border == prompt.size and border > 0:
            return
        header = common_prefix(self._encode([self._text(messages, tools)])[0], prompt)
        if border == 0 or border < header or prompt.size - border > MAX_HEADER_TOKENS:
            raise RowRefused("", Code.BORDER_UNCLEAR)

    def _render(self, messages: list[Row], tools: list[Row] | None) -> Rendered:
        text = self._text(messages, tools)
        encoding = self.encoder.encode(text, add_special_tokens=False)
        ends = np.array([end for _, end in encoding.offsets], dtype=np.int32)
        return Rendered(text, np.array(encoding.ids, dtype=np.int32), ends)

    def _encode(self, texts: list[str]) -> list[IntArray]:
        """Token ids of each text; without offsets, which cost as much again."""
        encodings = self.encoder.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.int32) for encoding in encodings]

    def _text(self, messages: list[Row], tools: list[Row] | None, *, generate: bool = False) -> str:
        """The rendering of `messages`; `generate` adds the header after which the model would answer."""
        try:
            text: Any = self.tokenizer.apply_chat_template(
                messages, tools=tools, tokenize=False, add_generation_prompt=generate
            )
        except TEMPLATE_ERRORS as error:
            raise RowRefused("messages", Code.TEMPLATE_REFUSED) from error
        return str(text)


def common_prefix(one: IntArray, other: IntArray) -> int:
    """Length of the longest common prefix."""
    size = min(one.size, other.size)
    differ = np.flatnonzero(one[:size] != other[:size])
    return int(differ[0]) if differ.size else size


def for_template(messages: list[Row]) -> list[Row]:
    """Messages in the shape that templates expect: no nulls, text where content is absent, arguments as objects.

    Data sets hold the arguments of calls as JSON text, as the chat APIs return them; templates print them with
    `tojson`, which would quote that text a second time.
    """
    return [_for_template(message) for message in messages]


def _for_template(message: Row) -> Row:
    given = {key: value for key, value in message.items() if value is not None}
    if "tool_calls" in given:
        given["tool_calls"] = [
            {**call, "function": {**call["function"], "arguments": _parsed(call["function"].get("arguments", {}))}}
            for call in given["tool_calls"]
        ]
    return {"content": "", **given}


def _parsed(arguments: Any) -> Any:
    if not isinstance(arguments, str):
        return arguments
    try:
        return json.loads(arguments)
    except ValueError:
        return arguments
