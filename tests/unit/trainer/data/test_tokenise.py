"""Which tokens of an example are trained, for every format and every choice of trainOnInputs."""

import pytest

from chats import TALK, talk, text, trained
from finetune_api.findings import DataErrorCode as Code
from finetune_api.method import TrainOnInputs
from finetune_trainer.data.chat import RowRefused
from finetune_trainer.data.examples import ChatPair, Talk, Text, TextPair
from finetune_trainer.data.tokenise import Tokeniser
from rows import THINKING, assistant, user
from tiny import CHAT_TEMPLATE

AUTO, ALWAYS, NEVER = TrainOnInputs.AUTO, TrainOnInputs.ALWAYS, TrainOnInputs.NEVER
ALONE, COMPLETION = Text("", "abc", stands_alone=True), Text("Q: ", "abc")


@pytest.mark.parametrize(
    ("example", "inputs", "spans"),
    [
        (ALONE, AUTO, ["bc<|end|>"]),
        (ALONE, ALWAYS, ["bc<|end|>"]),
        (COMPLETION, AUTO, ["abc<|end|>"]),
        (COMPLETION, NEVER, ["abc<|end|>"]),
        (COMPLETION, ALWAYS, [": abc<|end|>"]),
        (talk(TALK[1:3]), AUTO, ["Ja – 1.<|end|>\n"]),
        (talk(TALK[1:3]), NEVER, ["Ja – 1.<|end|>\n"]),
        (talk(TALK[1:3]), ALWAYS, ["<|user|>\nOne?<|end|>\n<|assistant|>\nJa – 1.<|end|>\n"]),
    ],
)
def test_what_is_trained(chat_with, example, inputs, spans):
    chat = chat_with(CHAT_TEMPLATE)
    found = Tokeniser(chat, None, inputs)(example, 3, 0.5)
    assert trained(chat, found.row) == spans
    assert (found.row.line, found.row.weight, found.last_turn_only) == (3, 0.5, False)


def test_pairs_come_in_messages_and_in_text(chat_with):
    chat = chat_with(CHAT_TEMPLATE)
    pair = Tokeniser(chat, None)(ChatPair((user("Q"),), None, assistant("a"), assistant("b")), 1, 1.0).row
    assert text(chat, pair.preferred) == "a<|end|>\n"
    pair = Tokeniser(chat, None)(TextPair("Q", "a", "b"), 1, 1.0).row
    assert text(chat, pair.preferred) == "a<|end|>"


def test_texts_need_no_template_and_messages_do(chat_with):
    tokenise = Tokeniser(chat_with(None), None)
    assert tokenise(ALONE, 1, 1.0).row.tokens.size == 4
    for example in (talk(TALK), ChatPair((user("Q"),), None, assistant("a"), assistant("b"))):
        with pytest.raises(RowRefused) as refused:
            tokenise(example, 1, 1.0)
        assert refused.value.code is Code.NO_CHAT_TEMPLATE


def test_a_token_beyond_the_embedding_is_refused(chat_with):
    chat = chat_with(CHAT_TEMPLATE)
    highest = int(Tokeniser(chat, None)(ALONE, 1, 1.0).row.tokens.max())
    Tokeniser(chat, highest + 1)(ALONE, 1, 1.0)
    with pytest.raises(RowRefused) as refused:
        Tokeniser(chat, highest)(ALONE, 1, 1.0)
    assert refused.value.code is Code.TOKEN_OUT_OF_RANGE


@pytest.mark.parametrize(
    ("example", "held"),
    [
        (talk([user("a"), assistant("b")]), False),
        (talk([user("a"), assistant("b<|end|>")]), True),
        (ChatPair((user("<|begin|>a"),), None, assistant("b"), assistant("c")), True),
        (ChatPair((user("a"),), None, assistant("b"), assistant("c<|end|>")), True),
        (Text("", "<|begin|>abc<|end|>", stands_alone=True), False),
        (Text("", "a<|end|>b", stands_alone=True), True),
        (TextPair("a", "b<|end|>", "c"), False),
        (TextPair("a", "b<|end|>", "c<|end|><|end|>"), True),
    ],
)
def test_an_end_that_stands_in_the_text_itself_is_noticed(chat_with, example, held):
    """The template or the tokeniser writes its own: the model would learn to stop at either."""
    assert Tokeniser(chat_with(CHAT_TEMPLATE), None).holds_mark(example) is held


def test_rows_of_which_only_the_last_answer_counts_are_marked(chat_with):
    assert Tokeniser(chat_with(THINKING), None)(talk(TALK), 1, 1.0).last_turn_only


def test_a_conversation_without_weight_teaches_only_where_all_is_trained(chat_with):
    silent = Talk((user("a"), assistant("b")), None, ())
    chat = chat_with(CHAT_TEMPLATE)
    assert [Tokeniser(chat, None, inputs).learns(silent) for inputs in (AUTO, ALWAYS, NEVER)] == [False, True, False]
    assert Tokeniser(chat, None).learns(ALONE)
