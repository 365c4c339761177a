"""Which tokens of a conversation are learned: those of the assistant's messages, or all of them.

A template may mark them itself. Otherwise they are found by rendering the conversation turn after turn: what the
rendering grows by is the answer. The whole is tokenised once; turns are told apart by characters, so that a long
conversation costs rendering, not tokenising, for each of its turns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from finetune_api.findings import DataErrorCode as Code
from finetune_trainer.data.chat import ChatTokenizer, Part, Rendered, RowRefused
from finetune_trainer.data.examples import Talk, Tools, images_of
from finetune_trainer.data.messages import ASSISTANT, USER
from finetune_trainer.data.rows import Row
from finetune_trainer.data.tokens import BoolArray, IntArray

Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class TokenisedTalk:
    """A conversation and what of it is trained, as in `tokens.Conversation`."""

    tokens: IntArray
    targets: BoolArray
    last_turn_only: bool = False
    """True if there are more answers, which the template renders differently once the conversation goes on."""


def all_tokens(chat: ChatTokenizer, talk: Talk) -> TokenisedTalk:
    """Every token is trained but the first, which nothing stands before."""
    tokens = chat.encode([chat.text(talk.messages, talk.tools)])[0]
    return TokenisedTalk(tokens, np.arange(tokens.size) > 0)


def answers(chat: ChatTokenizer, talk: Talk) -> TokenisedTalk:
    """What is learned is trained; messages after the last of it are left out. `talk.learned` is not empty.

    Raises:
        RowRefused: the template refuses the row, renders its answers to nothing, or their border is unclear.
    """
    talk = talk.until_learned()
    marked = chat.marks_generation and not images_of(talk)  # the mark is of the text before images have their tokens
    row = (_by_mark(chat, talk) if marked else None) or _by_rendering(chat, talk)
    if not row.targets.any():
        raise RowRefused(Part.ANSWER, Code.EMPTY_ANSWER)
    return row


def _by_mark(chat: ChatTokenizer, talk: Talk) -> TokenisedTalk | None:
    """The template says itself which tokens are the assistant's; None if it cannot be told which are not learned."""
    options = {"tokenize": True, "return_dict": True, "return_assistant_tokens_mask": True}
    marked = chat.template(talk.messages, talk.tools, **options)
    targets = np.array(marked["assistant_masks"], dtype=np.bool_)
    turns = (i for i, message in enumerate(talk.messages) if message["role"] == ASSISTANT)
    passed_over = [turn for turn in turns if turn not in talk.learned]
    if passed_over:
        spans = _spans(chat, talk, chat.rendered(talk.messages, talk.tools), passed_over)
        if spans is None:
            return None
        for begin, end in spans:
            targets[begin:end] = False
    targets[:1] = False
    return TokenisedTalk(np.array(marked["input_ids"], dtype=np.int32), targets)


def _by_rendering(chat: ChatTokenizer, talk: Talk) -> TokenisedTalk:
    """Every answer is what the rendering grows by; if one is rendered differently later, only the last counts."""
    whole = chat.rendered(talk.messages, talk.tools)
    *earlier, last = talk.learned
    spans = _spans(chat, talk, whole, earlier)
    targets = np.zeros(whole.tokens.size, dtype=np.bool_)
    for begin, end in [*(spans or ()), (_last_border(chat, talk, whole, last), whole.tokens.size)]:
        targets[begin:end] = True
    targets[:1] = False
    return TokenisedTalk(whole.tokens, targets, last_turn_only=spans is None)


def _last_border(chat: ChatTokenizer, talk: Talk, whole: Rendered, last: int) -> int:
    if last:
        return chat.border(talk.messages[:last], whole, talk.tools)
    return _token_at(whole, len(_opening(chat, whole.text, talk.tools)))


def _spans(chat: ChatTokenizer, talk: Talk, whole: Rendered, turns: Sequence[int]) -> list[Span] | None:
    """Where each of `turns` lies in the tokens of `whole`; None if one of them is rendered differently there."""
    spans = []
    for turn in turns:
        try:
            through = chat.text(talk.messages[: turn + 1], talk.tools)
            if not whole.text.startswith(through):
                return None
            spans.append((_begin(chat, talk.messages[:turn], whole, talk.tools), _token_at(whole, len(through))))
        except RowRefused:
            return None
    return spans


def _begin(chat: ChatTokenizer, before: Sequence[Row], whole: Rendered, tools: Tools) -> int:
    """The first token of the answer to the messages `before`."""
    prompt = chat.text(before, tools, generate=True) if before else _opening(chat, whole.text, tools)
    if whole.text.startswith(prompt):
        return _token_at(whole, len(prompt))
    return chat.border(before, whole, tools)


def _token_at(whole: Rendered, character: int) -> int:
    """The first token that holds something from `character` on."""
    return int(np.searchsorted(whole.ends, character, side="right"))


def _opening(chat: ChatTokenizer, text: str, tools: Tools) -> str:
    """What stands before an answer that begins the conversation: all to the end of the first generation header.

    There is no prompt that a template would render, so the header is taken from another one.
    """
    probe = [{"role": USER, "content": "a"}]
    header = chat.text(probe, tools, generate=True).removeprefix(chat.text(probe, tools))
    end = text.find(header)
    if not header or end < 0:
        raise RowRefused(Part.PROMPT, Code.TEMPLATE_REFUSED)
    return text[: end + len(header)]
