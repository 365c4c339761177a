"""What a good row is for a method, in which shape it comes, and which rows are the same."""

import pytest

from finetune_api.method import MethodType
from finetune_trainer.data.examples import (
    ChatPair,
    Talk,
    Text,
    TextPair,
    digest_of,
    example_of,
    for_template,
    prompt_digest_of,
)
from finetune_trainer.data.gate import shape_of
from rows import assistant, conversation, preference, user

CALL = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"at": "sky"}'}}


def of(row, method=None):
    return example_of(row, shape_of(row, None), method)


def hub(prompt, chosen, rejected):
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def test_pairs_are_the_same_in_every_shape():
    pair = of(preference("Which?", "this", "that"))
    q, this, that = [user("Which?")], assistant("this"), assistant("that")
    assert isinstance(pair, ChatPair)
    assert (pair.messages, pair.preferred, pair.non_preferred) == (tuple(q), this, that)
    for row in (hub(q, [this], [that]), hub(q, [*q, this], [*q, that]), hub("Which?", [*q, this], [that])):
        assert of(row) == pair
    assert of(hub("Which?", "this", "that")) == TextPair("Which?", "this", "that")


def test_sft_learns_the_preferred_answer():
    assert of(preference("Which?", "this"), MethodType.SFT) == Talk(
        (user("Which?"), assistant("this")), None, (1,), last_counts=True
    )
    assert of(hub("Which?", "this", "that"), MethodType.SFT) == Text("Which?", "this")
    assert of({"prompt": "a", "completion": "b"}) == Text("a", "b")
    assert of({"text": "a"}) == Text("", "a", stands_alone=True)


def test_answers_of_weight_0_are_not_learned():
    row = conversation("a", "b", "c", "d", "e")
    row["messages"][1]["weight"] = False
    assert of(row).learned == (3,)
    assert "weight" not in of(row).messages[1]


@pytest.mark.parametrize(
    ("given", "rendered"),
    [
        ({"content": None, "name": None}, {"content": ""}),
        ({"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}, {"content": "ab"}),
        ({"content": "a", "reasoning": "r"}, {"content": "a", "reasoning": "r", "reasoning_content": "r"}),
        ({"content": "a", "refusal": "no", "weight": 1}, {"content": "a", "refusal": "no"}),
    ],
)
def test_a_message_is_as_templates_expect_it(given, rendered):
    assert for_template({"role": "assistant", **given}) == {"role": "assistant", **rendered}


def test_arguments_are_objects_where_they_can_be():
    def arguments(text):
        call = {**CALL, "function": {"name": "look", "arguments": text}}
        message = for_template({"role": "assistant", "tool_calls": [call]})
        return message["tool_calls"][0]["function"]["arguments"]

    assert arguments('{"at": "sky"}') == {"at": "sky"}
    assert arguments({"at": 1}) == {"at": 1}
    assert arguments("not json") == "not json"
    assert for_template({**user("a"), "tool_calls": "odd"})["tool_calls"] == "odd"


def test_digests_tell_rows_and_prompts_apart():
    one, same, other = of(preference()), of(dict(reversed(preference().items()))), of(preference(preferred="x"))
    assert digest_of(one, 1.0) == digest_of(same, 1.0)
    assert len({digest_of(one, 1.0), digest_of(one, 2.0), digest_of(other, 1.0)}) == 3
    assert prompt_digest_of(one) == prompt_digest_of(other)
    assert len(digest_of(one, 1.0)) == len(prompt_digest_of(one)) == 16
    assert prompt_digest_of(of({"text": "a"})) is None


def test_a_prompt_of_a_conversation_is_all_before_its_last_answer():
    one, two, three = (of(conversation("a", "b", "c", *rest)) for rest in (("d",), ("e",), ("d", "f")))
    assert prompt_digest_of(one) == prompt_digest_of(two) == prompt_digest_of(three)
    assert prompt_digest_of(of(conversation("a", "x", "c", "d"))) != prompt_digest_of(one)


def test_half_a_surrogate_pair_has_no_digest():
    with pytest.raises(UnicodeEncodeError):
        digest_of(of({"text": "\ud83d"}), 1.0)
