"""Each rule with the smallest row that breaks it, the field it is reported at and its code."""

import copy

import pytest

from finetune_api.report import DataErrorCode as Code
from finetune_trainer.data.gate import Format, check_row, format_of
from rows import assistant, conversation, preference, system, user

CALL = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"at": "sky"}'}}
TOOL_TALK = [
    user("Look."),
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "content": "blue", "tool_call_id": "c1", "name": "look"},
    assistant("It is blue."),
]


def changed(row, path, value):
    """The row with one field replaced; a value of ... removes it."""
    row = copy.deepcopy(row)
    *parents, last = path
    inner = row
    for step in parents:
        inner = inner[step]
    if value is ...:
        del inner[last]
    else:
        inner[last] = value
    return row


@pytest.mark.parametrize(
    "row",
    [
        preference(),
        changed(preference(), ["input", "messages"], [system("Be brief."), user("a"), assistant("b"), user("c")]),
        changed(preference(), ["input", "tools"], [{"type": "function", "function": {"name": "look"}}]),
        changed(preference(), ["input", "tools"], None),
        changed(preference(), ["preferred_output", 0], {"role": "assistant", "tool_calls": [CALL]}),
        changed(preference(), ["input", "messages", 0, "content"], ""),
    ],
)
def test_good_preference_rows_pass(row):
    assert format_of(row, None) is Format.PREFERENCE
    assert check_row(row, Format.PREFERENCE) == []


@pytest.mark.parametrize(
    "row",
    [
        conversation("a", "b"),
        conversation("a", "b", "c"),
        {"messages": [assistant("I begin.")]},
        {"messages": TOOL_TALK, "tools": [{"type": "function"}]},
    ],
)
def test_good_conversations_pass(row):
    assert format_of(row, None) is Format.CONVERSATION
    assert check_row(row, Format.CONVERSATION) == []


PREFERENCE_ERRORS = [
    (["extra"], 1, "extra", Code.EXTRA_COLUMN),
    (["weight"], 1.0, "weight", Code.EXTRA_COLUMN),
    (["a secret sentence"], 1, "?", Code.EXTRA_COLUMN),
    (["input"], ..., "input", Code.MISSING_FIELD),
    (["preferred_output"], ..., "preferred_output", Code.MISSING_FIELD),
    (["non_preferred_output"], ..., "non_preferred_output", Code.MISSING_FIELD),
    (["input"], "text", "input", Code.WRONG_TYPE),
    (["input", "model"], "x", "input.model", Code.EXTRA_COLUMN),
    (["input", "messages"], ..., "input.messages", Code.MISSING_FIELD),
    (["input", "messages"], {}, "input.messages", Code.WRONG_TYPE),
    (["input", "messages"], [], "input.messages", Code.EMPTY_MESSAGES),
    (["input", "messages", 0], "hello", "input.messages[0]", Code.WRONG_TYPE),
    (["input", "messages", 0, "role"], ..., "input.messages[0].role", Code.MISSING_FIELD),
    (["input", "messages", 0, "role"], 3, "input.messages[0].role", Code.WRONG_TYPE),
    (["input", "messages", 0, "role"], "human", "input.messages[0].role", Code.INVALID_ROLE),
    (["input", "messages", 0, "content"], ..., "input.messages[0].content", Code.MISSING_FIELD),
    (["input", "messages", 0, "content"], None, "input.messages[0].content", Code.MISSING_FIELD),
    (["input", "messages", 0, "content"], ["a"], "input.messages[0].content", Code.WRONG_TYPE),
    (["input", "messages", 0, "weight"], 1, "input.messages[0].weight", Code.EXTRA_COLUMN),
    (["input", "messages", 0, "tool_calls"], [CALL], "input.messages[0].tool_calls", Code.EXTRA_COLUMN),
    (["input", "messages", 0], assistant("x"), "input.messages[0].role", Code.LAST_MESSAGE_FROM_ASSISTANT),
    (["input", "tools"], "look", "input.tools", Code.WRONG_TYPE),
    (["input", "tools"], [1], "input.tools[0]", Code.WRONG_TYPE),
    (["preferred_output"], assistant("x"), "preferred_output", Code.WRONG_TYPE),
    (["preferred_output"], [], "preferred_output", Code.NOT_ONE_ASSISTANT_MESSAGE),
    (["preferred_output"], [assistant("x")] * 2, "preferred_output", Code.NOT_ONE_ASSISTANT_MESSAGE),
    (["preferred_output", 0], user("x"), "preferred_output[0].role", Code.NOT_ONE_ASSISTANT_MESSAGE),
    (["preferred_output", 0], "x", "preferred_output[0]", Code.WRONG_TYPE),
    (["preferred_output", 0, "role"], ..., "preferred_output[0].role", Code.MISSING_FIELD),
    (["preferred_output", 0, "role"], "bot", "preferred_output[0].role", Code.INVALID_ROLE),
    (["preferred_output", 0, "content"], ..., "preferred_output[0].content", Code.MISSING_FIELD),
    (["preferred_output", 0, "content"], "", "preferred_output[0].content", Code.EMPTY_ANSWER),
    (["non_preferred_output", 0, "content"], " \n", "non_preferred_output[0].content", Code.EMPTY_ANSWER),
    (["non_preferred_output", 0, "content"], "this", "non_preferred_output", Code.IDENTICAL_ANSWERS),
    (["preferred_output", 0, "tool_calls"], [], "preferred_output[0].tool_calls", Code.WRONG_TYPE),
    (["preferred_output", 0, "tool_calls"], [{}], "preferred_output[0].tool_calls[0].function", Code.WRONG_TYPE),
    (
        ["preferred_output", 0, "tool_calls"],
        [{"function": {"arguments": {}}}],
        "preferred_output[0].tool_calls[0].function.name",
        Code.WRONG_TYPE,
    ),
    (
        ["preferred_output", 0, "tool_calls"],
        [{"function": {"name": "look", "arguments": 3}}],
        "preferred_output[0].tool_calls[0].function.arguments",
        Code.WRONG_TYPE,
    ),
]


@pytest.mark.parametrize(("path", "value", "field", "code"), PREFERENCE_ERRORS)
def test_each_mistake_in_a_preference_row_is_one_error_at_its_field(path, value, field, code):
    problems = check_row(changed(preference(), path, value), Format.PREFERENCE)
    assert [(problem.field, problem.code) for problem in problems] == [(field, code)]


CONVERSATION_ERRORS = [
    (["prompt"], "x", "prompt", Code.EXTRA_COLUMN),
    (["messages"], "x", "messages", Code.WRONG_TYPE),
    (["messages"], [], "messages", Code.EMPTY_MESSAGES),
    (["messages"], [user("x")], "messages", Code.NO_ASSISTANT_MESSAGE),
    (["messages", 1, "content"], "  ", "messages[1].content", Code.EMPTY_ANSWER),
    (["messages", 1, "weight"], 0, "messages[1].weight", Code.EXTRA_COLUMN),
    (["messages", 1, "role"], "model", "messages[1].role", Code.INVALID_ROLE),
    (["messages", 0], {"role": "tool", "content": "x", "tool_call_id": 3}, "messages[0].tool_call_id", Code.WRONG_TYPE),
    (["tools"], {"a": 1}, "tools", Code.WRONG_TYPE),
]


@pytest.mark.parametrize(("path", "value", "field", "code"), CONVERSATION_ERRORS)
def test_each_mistake_in_a_conversation_is_one_error_at_its_field(path, value, field, code):
    problems = check_row(changed(conversation("a", "b"), path, value), Format.CONVERSATION)
    assert [(problem.field, problem.code) for problem in problems] == [(field, code)]


def test_several_mistakes_are_all_reported():
    row = {"input": {"messages": [{"role": "human", "content": "x"}]}, "preferred_output": [], "extra": 1}
    assert {(problem.field, problem.code) for problem in check_row(row, Format.PREFERENCE)} == {
        ("extra", Code.EXTRA_COLUMN),
        ("non_preferred_output", Code.MISSING_FIELD),
        ("input.messages[0].role", Code.INVALID_ROLE),
        ("preferred_output", Code.NOT_ONE_ASSISTANT_MESSAGE),
    }


def test_an_unknown_format_has_no_name():
    assert format_of({"text": "x"}, None) is None
    assert format_of({}, Format.PREFERENCE) is None


def test_a_row_that_has_columns_of_both_is_of_the_file_s_format():
    row = {**preference(), **conversation("a", "b")}
    assert format_of(row, Format.CONVERSATION) is Format.CONVERSATION
    assert format_of(row, Format.PREFERENCE) is Format.PREFERENCE
