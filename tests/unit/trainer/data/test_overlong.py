"""What goes when a row is too long: turns, oldest or trailing, never a part of an answer."""

import numpy as np
import pytest

from chats import END, text, trained
from finetune_api.method import TrainOnInputs
from finetune_trainer.data.examples import ChatPair, Talk, Text, TextPair
from finetune_trainer.data.overlong import longest_side, prompt_size, shortened, split
from finetune_trainer.data.tokenise import Tokeniser
from finetune_trainer.data.tokens import Conversation, Pair
from rows import assistant, system, user
from tiny import CHAT_TEMPLATE

HISTORY = (system("S"), user("one"), assistant("first"), user("two"), assistant("second"), user("three"))


@pytest.fixture
def tokenise(chat_with):
    tokeniser = Tokeniser(chat_with(CHAT_TEMPLATE), None)
    return lambda example: tokeniser(example, 7, 0.5).row


@pytest.fixture
def shown(chat_with):
    chat = chat_with(CHAT_TEMPLATE)
    return lambda tokens: text(chat, tokens)


def test_the_oldest_turns_of_a_pair_go_and_its_system_message_stays(tokenise, shown):
    pair = ChatPair(HISTORY, None, assistant("yes"), assistant("nonono"))
    full = tokenise(pair)
    sizes = {}
    for limit in range(longest_side(full) - 1, 0, -1):
        row = shortened(pair, limit, tokenise)
        if row is None:
            break
        assert longest_side(row) <= limit
        assert (row.preferred.tolist(), row.non_preferred.tolist()) == (
            full.preferred.tolist(),
            full.non_preferred.tolist(),
        )
        sizes[shown(row.prompt)] = limit
    assert [prompt.count("<|user|>") for prompt in sizes] == [2, 1]
    assert all(prompt.startswith("<|begin|><|system|>\nS<|end|>\n<|user|>") for prompt in sizes)
    assert (row.line, row.weight) if row else (7, 0.5) == (7, 0.5)


def test_as_many_turns_stay_as_fit(tokenise):
    pair = ChatPair(HISTORY, None, assistant("yes"), assistant("no"))
    less = tokenise(ChatPair((HISTORY[0], *HISTORY[3:]), None, assistant("yes"), assistant("no")))
    assert longest_side(shortened(pair, longest_side(less), tokenise)) == longest_side(less)
    assert longest_side(shortened(pair, longest_side(less) - 1, tokenise)) < longest_side(less)


def test_a_preferred_answer_under_sft_is_kept_at_the_cost_of_its_prompt(tokenise, chat_with):
    talk = Talk((*HISTORY, assistant("yes")), None, (2, 4, 6), last_counts=True)
    row = shortened(talk, longest_side(tokenise(talk)) - 1, tokenise)
    assert trained(chat_with(CHAT_TEMPLATE), row) == ["second<|end|>\n", "yes<|end|>\n"]


def test_a_conversation_loses_trailing_turns(tokenise, chat_with):
    talk = Talk((*HISTORY, assistant("third")), None, (2, 4, 6))
    chat, limit, kept = chat_with(CHAT_TEMPLATE), longest_side(tokenise(talk)), []
    while (row := shortened(talk, limit - 1, tokenise)) is not None:
        kept.append(trained(chat, row))
        limit = longest_side(row)
    assert kept == [["first<|end|>\n", "second<|end|>\n"], ["first<|end|>\n"]]


def test_what_follows_the_last_answer_goes_first_where_it_would_be_trained(chat_with):
    """With trainOnInputs Always every message is part of the row, also one that nobody answers."""
    chat = chat_with(CHAT_TEMPLATE)
    always = Tokeniser(chat, None, TrainOnInputs.ALWAYS)
    talk = Talk((user("one"), assistant("first"), user("and a long last word")), None, (1,))
    row = shortened(talk, 40, lambda example: always(example, 7, 1.0).row)
    assert text(chat, row.tokens).endswith("first<|end|>\n")


@pytest.mark.parametrize("example", [TextPair("prompt", "a", "b"), Text("prompt", "a")])
def test_a_text_with_a_prompt_has_no_turns(tokenise, example):
    assert shortened(example, 2, tokenise) is None


@pytest.mark.parametrize("size", [9, 10, 17, 25, 100])
def test_a_split_text_is_trained_token_by_token_once(size):
    tokens = np.append(np.arange(100, 100 + size - 1, dtype=np.int32), np.int32(END))
    pieces = split(Conversation(3, tokens, np.arange(size) > 0, 2.0), 8)
    assert [token for piece in pieces for token in piece.tokens[piece.targets].tolist()] == tokens[1:].tolist()
    assert max(piece.tokens.size for piece in pieces) == 8
    assert not any(piece.targets[0] for piece in pieces)
    assert {(piece.line, piece.weight) for piece in pieces} == {(3, 2.0)}


def test_a_text_in_pieces_of_one_token_teaches_nothing():
    assert split(Conversation(3, np.arange(5, dtype=np.int32), np.arange(5) > 0), 1) == []


def test_sides_and_prompts_are_measured():
    def ids(count):
        return np.zeros(count, np.int32)

    assert longest_side(Pair(1, ids(5), ids(2), ids(3))) == 8
    assert prompt_size(Pair(1, ids(5), ids(2), ids(3))) == 5
    assert prompt_size(Conversation(1, ids(4), np.array([False, False, True, True]))) == 2
