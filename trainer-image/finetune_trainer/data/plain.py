"""Rows in plain text: no template, the tokenizer's own BOS in front, EOS at the end of what is learned."""

from __future__ import annotations

import numpy as np

from finetune_api.findings import DataErrorCode as Code
from finetune_trainer.data.chat import MAX_HEADER_TOKENS, ChatTokenizer, Part, RowRefused, TokenisedPair, common_prefix
from finetune_trainer.data.examples import TextPair
from finetune_trainer.data.tokens import IntArray


def text_pair(chat: ChatTokenizer, pair: TextPair) -> TokenisedPair:
    """A preference row in text."""
    prompt, preferred, non_preferred = _parts(chat, pair.prompt, pair.preferred, pair.non_preferred)
    if np.array_equal(preferred, non_preferred):
        raise RowRefused(Part.WORSE_ANSWER, Code.IDENTICAL_ANSWERS)
    return TokenisedPair(prompt, preferred, non_preferred)


def completion(chat: ChatTokenizer, prompt: str, answer: str) -> tuple[IntArray, IntArray]:
    """A prompt and what goes on with it."""
    begin, end = _parts(chat, prompt, answer)
    return begin, end


def text(chat: ChatTokenizer, content: str) -> IntArray:
    """A text that stands alone."""
    return _ended(chat, _led(chat, chat.encode([content])[0]))


def _parts(chat: ChatTokenizer, prompt: str, *answers: str) -> list[IntArray]:
    """The prompt's tokens and those of each answer.

    The border is the longest common prefix of the prompt and of each whole: a tokenizer may merge across it.
    """
    alone, *whole = chat.encode([prompt, *(prompt + answer for answer in answers)])
    border = min(common_prefix(alone, each) for each in whole)
    if alone.size - border > MAX_HEADER_TOKENS:
        raise RowRefused(Part.ROW, Code.BORDER_UNCLEAR)
    return [chat.begun(_led(chat, alone[:border])), *(_ended(chat, each[border:]) for each in whole)]


def _led(chat: ChatTokenizer, tokens: IntArray) -> IntArray:
    """BOS once, where the tokenizer wants one."""
    if not chat.adds_bos or tokens[:1].tolist() == [chat.bos]:
        return tokens
    return np.concatenate([np.array([chat.bos], dtype=np.int32), tokens])


def _ended(chat: ChatTokenizer, tokens: IntArray) -> IntArray:
    """EOS once."""
    if chat.eos is None:
        raise RowRefused(Part.ROW, Code.NO_END_TOKEN)
    if tokens[-1:].tolist() == [chat.eos]:
        return tokens
    return np.append(tokens, np.int32(chat.eos))
