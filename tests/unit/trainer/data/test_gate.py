"""Each rule with the smallest row that breaks it, the field it is reported at and its code."""

import pytest

from finetune_api.findings import DataErrorCode as Code
from finetune_trainer.data.gate import CHOSEN, CONVERSATION, INSTRUCTION, PREFERENCE, TEXT, check_row, shape_of
from rows import assistant, changed, conversation, preference, system, user

CALL = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"at": "sky"}'}}
TOOL_TALK = [
    user("Look."),
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "content": "blue", "tool_call_id": "c1", "name": "look"},
    assistant("It is blue."),
]


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
    assert shape_of(row, None) is PREFERENCE
    assert check_row(row, PREFERENCE) == []


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
    assert shape_of(row, None) is CONVERSATION
    assert check_row(row, CONVERSATION) == []


PREFERENCE_ERRORS = [
    (["extra"], 1, "extra", Code.EXTRA_COLUMN),
    (["input_ids"], [1, 2], "input_ids", Code.PRETOKENISED),
    (["weight"], -0.5, "weight", Code.INVALID_WEIGHT),
    (["weight"], float("inf"), "weight", Code.INVALID_WEIGHT),
    (["weight"], float("nan"), "weight", Code.INVALID_WEIGHT),
    (["weight"], 10**400, "weight", Code.INVALID_WEIGHT),
    (["weight"], "1", "weight", Code.INVALID_WEIGHT),
    (["weight"], True, "weight", Code.INVALID_WEIGHT),
    (["a secret sentence"], 1, "?", Code.EXTRA_COLUMN),
    (["input"], ..., "input", Code.MISSING_FIELD),
    (["preferred_output"], ..., "preferred_output", Code.MISSING_FIELD),
    (["non_preferred_output"], ..., "non_preferred_output", Code.MISSING_FIELD),
    (["preferred_output"], None, "preferred_output", Code.MISSING_FIELD),
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
    (["input", "messages", 0, "content"], 5, "input.messages[0].content", Code.WRONG_TYPE),
    (["input", "messages", 0, "content"], ["a"], "input.messages[0].content[0]", Code.WRONG_TYPE),
    (["input", "messages", 0, "weight"], 2, "input.messages[0].weight", Code.INVALID_WEIGHT),
    (["input", "messages", 0, "weight"], 1.0, "input.messages[0].weight", Code.INVALID_WEIGHT),
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
    problems = check_row(changed(preference(), path, value), PREFERENCE)
    assert [(problem.field, problem.code) for problem in problems] == [(field, code)]


CONVERSATION_ERRORS = [
    (["prompt"], "x", "prompt", Code.EXTRA_COLUMN),
    (["messages"], "x", "messages", Code.WRONG_TYPE),
    (["messages"], [], "messages", Code.EMPTY_MESSAGES),
    (["messages"], [user("x")], "messages", Code.NO_ASSISTANT_MESSAGE),
    (["messages", 1, "content"], "  ", "messages[1].content", Code.EMPTY_ANSWER),
    (["messages", 1, "weight"], "0", "messages[1].weight", Code.INVALID_WEIGHT),
    (["messages", 1, "reasoning"], 3, "messages[1].reasoning", Code.WRONG_TYPE),
    (["messages", 1, "reasoning_content"], ["a"], "messages[1].reasoning_content", Code.WRONG_TYPE),
    (["messages", 1, "role"], "model", "messages[1].role", Code.INVALID_ROLE),
    (["messages", 0], {"role": "tool", "content": "x", "tool_call_id": 3}, "messages[0].tool_call_id", Code.WRONG_TYPE),
    (["tools"], {"a": 1}, "tools", Code.WRONG_TYPE),
]


@pytest.mark.parametrize(("path", "value", "field", "code"), CONVERSATION_ERRORS)
def test_each_mistake_in_a_conversation_is_one_error_at_its_field(path, value, field, code):
    problems = check_row(changed(conversation("a", "b"), path, value), CONVERSATION)
    assert [(problem.field, problem.code) for problem in problems] == [(field, code)]


def test_several_mistakes_are_all_reported():
    row = {"input": {"messages": [{"role": "human", "content": "x"}]}, "preferred_output": [], "extra": 1}
    assert {(problem.field, problem.code) for problem in check_row(row, PREFERENCE)} == {
        ("extra", Code.EXTRA_COLUMN),
        ("non_preferred_output", Code.MISSING_FIELD),
        ("input.messages[0].role", Code.INVALID_ROLE),
        ("preferred_output", Code.NOT_ONE_ASSISTANT_MESSAGE),
    }


def chosen(prompt="Which?", better="this", worse="that") -> dict:
    return {"prompt": prompt, "chosen": better, "rejected": worse}


Q, THIS, THAT = [user("Which?")], assistant("this"), assistant("that")
FORMATS = [
    (CHOSEN, chosen()),
    (CHOSEN, chosen("", "a", "b")),
    (CHOSEN, chosen(Q, [THIS], [THAT])),
    (CHOSEN, chosen(Q, [*Q, THIS], [*Q, THAT])),
    (CHOSEN, chosen(Q, [*Q, THIS], [THAT])),
    (CHOSEN, chosen("Which?", [*Q, THIS], [*Q, THAT])),
    (CHOSEN, {**chosen(Q, [THIS], [THAT]), "tools": [{"name": "look"}], "weight": 0.5}),
    (INSTRUCTION, {"prompt": "", "completion": "b", "weight": 2}),
    (TEXT, {"text": "a", "weight": 0}),
    (PREFERENCE, {**preference(), "weight": 1e300}),
    (CONVERSATION, {"messages": [user("a"), {**assistant("b"), "weight": True, "reasoning": "c"}], "weight": None}),
    (CONVERSATION, {"messages": [{**user("a"), "name": "Ann", "id": 3, "weight": 0}, assistant("b")]}),
    (CONVERSATION, {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}, assistant("b")]}),
    (CONVERSATION, {"messages": [user("a"), user("a"), assistant("b"), assistant("c")]}),
]


@pytest.mark.parametrize(("shape", "row"), FORMATS)
def test_each_format_is_known_by_its_columns(shape, row):
    assert shape_of(row, None) is shape
    assert check_row(row, shape) == []


OTHER_ERRORS = [
    (chosen(3), "prompt", Code.WRONG_TYPE),
    (chosen([], [THIS], [THAT]), "prompt", Code.EMPTY_MESSAGES),
    (chosen(None), "prompt", Code.MISSING_FIELD),
    (chosen(Q, [THIS], [THIS]), "rejected", Code.IDENTICAL_ANSWERS),
    (chosen(Q, [*Q, THIS], [THIS]), "rejected", Code.IDENTICAL_ANSWERS),
    (chosen(better="that"), "rejected", Code.IDENTICAL_ANSWERS),
    (chosen(better=" "), "chosen", Code.EMPTY_ANSWER),
    (chosen(worse=None), "rejected", Code.MISSING_FIELD),
    (chosen(Q, [user("Other?"), THIS], [THAT]), "chosen", Code.NOT_ONE_ASSISTANT_MESSAGE),
    (chosen(Q, [*Q, user("x")], [THAT]), "chosen[1].role", Code.NOT_ONE_ASSISTANT_MESSAGE),
    (chosen(Q, "this", [THAT]), "chosen", Code.WRONG_TYPE),
    (chosen([THIS], [THIS], [THAT]), "prompt[0].role", Code.LAST_MESSAGE_FROM_ASSISTANT),
    ({**chosen(), "score": 1}, "score", Code.EXTRA_COLUMN),
    ({"prompt": "a"}, "completion", Code.MISSING_FIELD),
    ({"prompt": "a", "chosen": "b"}, "rejected", Code.MISSING_FIELD),
    ({"prompt": ["a"], "completion": "b"}, "prompt", Code.WRONG_TYPE),
    ({"prompt": "a", "completion": 3}, "completion", Code.WRONG_TYPE),
    ({"prompt": "a", "completion": "\n"}, "completion", Code.EMPTY_ANSWER),
    ({"text": "  "}, "text", Code.EMPTY_ANSWER),
    ({"text": 3}, "text", Code.WRONG_TYPE),
    ({"text": None}, "text", Code.MISSING_FIELD),
    ({"text": "a", "tools": []}, "tools", Code.EXTRA_COLUMN),
    ({"text": "a", "weight": [1]}, "weight", Code.INVALID_WEIGHT),
]


@pytest.mark.parametrize(("row", "field", "code"), OTHER_ERRORS)
def test_each_mistake_in_another_format_is_one_error_at_its_field(row, field, code):
    problems = check_row(row, shape_of(row, None))
    assert [(problem.field, problem.code) for problem in problems] == [(field, code)]


def test_columns_of_one_s_own_pass_where_that_is_asked_for():
    row = {**preference(), "id": 7, "input_ids": [1]}
    row["input"]["source"] = "web"
    assert check_row(row, PREFERENCE, extra_columns=True) == []
    assert len(check_row(row, PREFERENCE)) == 3


def test_an_unknown_format_has_no_shape():
    assert shape_of({"question": "x"}, None) is None
    assert shape_of({}, PREFERENCE) is None
    assert shape_of({"weight": 1, "tools": []}, None) is None


def test_a_row_that_has_columns_of_both_is_of_the_file_s_format():
    row = {**preference(), **conversation("a", "b")}
    assert shape_of(row, CONVERSATION) is CONVERSATION
    assert shape_of(row, PREFERENCE) is PREFERENCE
    assert shape_of({"prompt": "x"}, CHOSEN) is CHOSEN
    assert shape_of({"prompt": "x", "completion": "y"}, CHOSEN) is INSTRUCTION
    assert shape_of({"text": "x"}, CHOSEN) is TEXT
