"""What a message may hold, and what it says."""

import pytest

from finetune_api.findings import DataErrorCode as Code
from finetune_trainer.data.messages import check_message, check_messages, check_tools, text_of
from rows import assistant, user


def found(problems):
    return [(problem.field, problem.code) for problem in problems]


@pytest.mark.parametrize(
    ("part", "field", "code"),
    [
        ("a", "m.content[0]", Code.WRONG_TYPE),
        ({"text": "a"}, "m.content[0]", Code.WRONG_TYPE),
        ({"type": "text"}, "m.content[0].text", Code.WRONG_TYPE),
        ({"type": "audio"}, "m.content[0].type", Code.UNSUPPORTED_CONTENT),
    ],
)
def test_a_part_that_is_no_text_is_named(part, field, code):
    assert found(check_message("m", {"role": "user", "content": [part]})) == [(field, code)]


def test_parts_of_text_are_one_text():
    parts = [{"type": "text", "text": "a "}, {"type": "text", "text": "b"}]
    assert found(check_message("m", {"role": "assistant", "content": parts})) == []
    assert (text_of(parts), text_of("a"), text_of(None), text_of([])) == ("a b", "a", "", "")
    assert found(check_message("m", {"role": "assistant", "content": []})) == [("m.content", Code.EMPTY_ANSWER)]


def test_a_tool_answers_with_text_and_names_its_call_with_text():
    message = {"role": "tool", "content": "blue", "tool_call_id": "c1", "name": "look"}
    assert found(check_message("m", message)) == []
    assert found(check_message("m", {**message, "name": 1})) == [("m.name", Code.WRONG_TYPE)]
    assert found(check_message("m", {**message, "content": None})) == [("m.content", Code.MISSING_FIELD)]


def test_every_message_of_a_list_is_judged():
    messages = [user("a"), {"role": "bot", "weight": 3}, 7, assistant("")]
    assert found(check_messages("x", messages)) == [
        ("x[1].role", Code.INVALID_ROLE),
        ("x[1].weight", Code.INVALID_WEIGHT),
        ("x[2]", Code.WRONG_TYPE),
        ("x[3].content", Code.EMPTY_ANSWER),
    ]


def test_no_tools_are_fine():
    assert found(check_tools("tools", None)) == found(check_tools("tools", [])) == []
