"""The tokenizer and chat template of a model: rendering messages, and where an answer begins.

Prompt and answer are never tokenised apart and glued together: the whole is rendered and tokenised as inference will
do it, and the border is found in the tokens. Templates are sandboxed by transformers; torch is not needed for any of
this and not imported.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import Enum, auto
from functools import cached_property
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from transformers import PreTrainedTokenizerFast

from finetune_api.findings import DataErrorCode as Code
from finetune_trainer.data.deadline import TEMPLATE_SECONDS, at_most
from finetune_trainer.data.examples import ChatPair, Tools
from finetune_trainer.data.images import images_in
from finetune_trainer.data.rows import Row
from finetune_trainer.data.tokens import IntArray
from finetune_trainer.vision import Vision

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


class Part(Enum):
    """Where in a row a fault lies; its format knows the name of the field."""

    ROW = auto()
    PROMPT = auto()
    ANSWER = auto()
    WORSE_ANSWER = auto()


class RowRefused(Exception):
    """The row cannot be rendered or has no clear answer."""

    def __init__(self, part: Part, code: Code) -> None:
        super().__init__(code)
        self.part = part
        self.code = code


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


class ChatTokenizer:
    """A tokenizer with its chat template, or with `template` in place of that.

    Args:
        vision: how the model takes images, if it takes any.

    Its methods raise RowRefused for a row that the template refuses or in which the answer's first token is unclear.

    Raises:
        jinja2.TemplateSyntaxError: `template` is none.
        TookTooLong: `template` does not end.
    """

    def __init__(self, folder: Path, template: str | None = None, vision: Vision | None = None) -> None:
        self.tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
        self.encoder = self.tokenizer.backend_tokenizer
        self.encoder.no_truncation()
        self.encoder.no_padding()
        if template is not None:
            self.tokenizer.chat_template = template
            self._compile()
        own = self.tokenizer.chat_template
        self.has_template = bool(own)
        self.marks_generation = isinstance(own, str) and GENERATION_MARK.search(own) is not None
        self.vision = vision
        self.image_mark: str | None = self.tokenizer.convert_ids_to_tokens(vision.token) if vision else None
        """What stands for an image, or a piece of one, in text."""
        if vision and self.image_mark is None:
            raise ValueError("the token of images is not in the vocabulary")
        self.bos: int | None = self.tokenizer.bos_token_id
        self.eos: int | None = self.tokenizer.eos_token_id
        self.adds_bos = self.bos is not None and self.encoder.encode("a").ids[:1] == [self.bos]
        """The tokenizer begins every text with BOS; templates write it themselves."""

    def _compile(self) -> None:
        try:
            with at_most(TEMPLATE_SECONDS):
                self.tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False)
        except jinja2.TemplateSyntaxError:
            raise
        except TEMPLATE_ERRORS:
            return  # it is a template, and wants other messages

    @property
    def digest(self) -> str:
        """SHA-256 over vocabulary, template and special tokens: everything that turns messages into ids."""
        parts = [self.encoder.to_str(), self.tokenizer.chat_template, self.tokenizer.special_tokens_map]
        parts += [asdict(self.vision)] if self.vision else []
        return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()

    @cached_property
    def control(self) -> dict[int, str]:
        """The tokens that are no text, and how they are written."""
        return {token: found.content for token, found in self.tokenizer.added_tokens_decoder.items() if found.special}

    def pair(self, pair: ChatPair) -> TokenisedPair:
        """A preference row. The border is the longest common prefix of the prompt and both whole renderings."""
        messages, tools = pair.messages, pair.tools
        whole = [self.text([*messages, answer], tools) for answer in (pair.preferred, pair.non_preferred)]
        prompt, *sides = self.encode([self.text(messages, tools, generate=True), *whole])
        border = min(common_prefix(prompt, side) for side in sides)
        self._judge_border(border, prompt, messages, tools)
        answers = [side[border:] for side in sides]
        for part, answer in zip((Part.ANSWER, Part.WORSE_ANSWER), answers, strict=True):
            if answer.size == 0:
                raise RowRefused(part, Code.EMPTY_ANSWER)
        if np.array_equal(answers[0], answers[1]):
            raise RowRefused(Part.WORSE_ANSWER, Code.IDENTICAL_ANSWERS)
        return TokenisedPair(self.begun(prompt[:border]), answers[0], answers[1])

    def border(self, messages: Sequence[Row], whole: Rendered, tools: Tools) -> int:
        """Tokens of `whole` before what `messages` are answered with."""
        prompt = self.encode([self.text(messages, tools, generate=True)])[0]
        border = common_prefix(prompt, whole.tokens)
        self._judge_border(border, prompt, messages, tools)
        return border

    def _judge_border(self, border: int, prompt: IntArray, messages: Sequence[Row], tools: Tools) -> None:
        """A border before the prompt's end must lie in the generation header, and there near its end."""
        if border == prompt.size:
            return
        header = common_prefix(self.encode([self.text(messages, tools)])[0], prompt)
        if border == 0 or border < header or prompt.size - border > MAX_HEADER_TOKENS:
            raise RowRefused(Part.ROW, Code.BORDER_UNCLEAR)

    def begun(self, prompt: IntArray) -> IntArray:
        """A prompt that holds a token: in place of none BOS, as something must stand before an answer."""
        if prompt.size:
            return prompt
        if self.bos is None:
            raise RowRefused(Part.PROMPT, Code.EMPTY_PROMPT)
        return np.array([self.bos], dtype=np.int32)

    def rendered(self, messages: Sequence[Row], tools: Tools) -> Rendered:
        """The rendering of `messages` with where each token ends."""
        text = self.text(messages, tools)
        encoding = self.encoder.encode(text, add_special_tokens=False)
        ends = np.array([end for _, end in encoding.offsets], dtype=np.int32)
        return Rendered(text, np.array(encoding.ids, dtype=np.int32), ends)

    def encode(self, texts: list[str]) -> list[IntArray]:
        """Token ids of each text; without offsets, which cost as much again."""
        encodings = self.encoder.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.int32) for encoding in encodings]

    def text(self, messages: Sequence[Row], tools: Tools, *, generate: bool = False) -> str:
        """The rendering of `messages`; `generate` adds the header after which the model would answer."""
        rendered = str(self.template(messages, tools, tokenize=False, add_generation_prompt=generate))
        return rendered if self.vision is None else self._with_images(rendered, messages, self.vision)

    def _with_images(self, rendered: str, messages: Sequence[Row], vision: Vision) -> str:
        """A rendering with all tokens of each image in the place of the one that the template writes."""
        assert self.image_mark is not None
        expanded = vision.expanded(rendered, self.image_mark, images_in(messages))
        if expanded is None:
            raise RowRefused(Part.ROW, Code.IMAGE_TOKEN)
        return expanded

    def template(self, messages: Sequence[Row], tools: Tools, **options: Any) -> Any:
        """What the template makes of `messages`; `options` are those of `apply_chat_template`."""
        try:
            return self.tokenizer.apply_chat_template(list(messages), tools=tools, **options)
        except TEMPLATE_ERRORS as error:
            raise RowRefused(Part.PROMPT, Code.TEMPLATE_REFUSED) from error


def common_prefix(one: IntArray, other: IntArray) -> int:
    """Length of the longest common prefix."""
    size = min(one.size, other.size)
    differ = np.flatnonzero(one[:size] != other[:size])
    return int(differ[0]) if differ.size else size
