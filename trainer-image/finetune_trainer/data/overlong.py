"""Rows longer than maxSeqLength, made to fit where that is possible without cutting an answer.

What goes is always whole turns, and what is left is rendered anew: the same prompt for both sides of a pair.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from finetune_trainer.data.chat import RowRefused
from finetune_trainer.data.examples import ChatPair, Example, Talk
from finetune_trainer.data.messages import SYSTEM, USER
from finetune_trainer.data.rows import Row
from finetune_trainer.data.tokens import Conversation, Pair

Tokenise = Callable[[Example], Pair | Conversation]


def longest_side(row: Pair | Conversation) -> int:
    """Tokens of the longest sequence of the row: a pair has two, each with the prompt."""
    if isinstance(row, Pair):
        return row.prompt.size + max(row.preferred.size, row.non_preferred.size)
    return row.tokens.size


def prompt_size(row: Pair | Conversation) -> int:
    """Tokens before the first one that is trained."""
    return row.prompt.size if isinstance(row, Pair) else int(np.argmax(row.targets))


def shortened(example: Example, limit: int, tokenise: Tokenise) -> Pair | Conversation | None:
    """The row with as many turns as fit into `limit` tokens; None where that leaves nothing, or has no turns."""
    choices = _choices(example)
    low, high = 0, len(choices)
    found: Pair | Conversation | None = None
    while low < high:  # the fewer turns are kept, the shorter the row: the first choice that fits keeps the most
        middle = (low + high) // 2
        row = _tokenised(choices[middle], tokenise)
        if row is not None and longest_side(row) <= limit:
            found, high = row, middle
        else:
            low = middle + 1
    return found


def _tokenised(example: Example, tokenise: Tokenise) -> Pair | Conversation | None:
    try:
        return tokenise(example)
    except RowRefused:
        return None


def _choices(example: Example) -> list[Example]:
    """The example with ever fewer turns."""
    match example:
        case ChatPair():
            return [replace(example, messages=kept) for kept, _ in _without_oldest(example.messages)]
        case Talk(last_counts=True):
            return [_moved(example, *kept) for kept in _without_oldest(example.messages)]
        case Talk():
            ends = [turn for turn in example.learned if turn < len(example.messages) - 1]
            return [_ended(example, end) for end in reversed(ends)]
        case _:
            return []


def _without_oldest(messages: Sequence[Row]) -> list[tuple[tuple[Row, ...], int]]:
    """What is left when turns go, oldest first, and where in `messages` the first turn that stays begins.

    System messages in front stay. A turn begins with what the user says; the last one always stays.
    """
    system = next((i for i, message in enumerate(messages) if message["role"] != SYSTEM), len(messages))
    starts = [i for i in range(system + 1, len(messages)) if _begins_turn(messages, i)]
    return [((*messages[:system], *messages[start:]), start) for start in starts]


def _begins_turn(messages: Sequence[Row], index: int) -> bool:
    return bool(messages[index]["role"] == USER and messages[index - 1]["role"] != USER)


def _moved(talk: Talk, messages: tuple[Row, ...], start: int) -> Talk:
    gone = len(talk.messages) - len(messages)
    return replace(talk, messages=messages, learned=tuple(turn - gone for turn in talk.learned if turn >= start))


def _ended(talk: Talk, end: int) -> Talk:
    learned = tuple(turn for turn in talk.learned if turn <= end)
    return replace(talk, messages=talk.messages[: end + 1], learned=learned)


def split(row: Conversation, limit: int) -> list[Conversation]:
    """A text in pieces of at most `limit` tokens; each begins with the last token of the one before.

    So every token is trained once, predicted from the one that stands before it. A piece of one token has none.
    """
    if limit < 2:
        return []
    last = row.tokens.size - 1
    pieces = [slice(begin, begin + limit) for begin in range(0, last, limit - 1)]
    return [replace(row, tokens=row.tokens[p], targets=np.arange(row.tokens[p].size) > 0) for p in pieces]
