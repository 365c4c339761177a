"""Where an answer begins and what of a conversation is trained, under templates of different habits."""

import json

import numpy as np
import pytest

from finetune_api.report import DataErrorCode as Code
from finetune_trainer.data.chat import ChatTokenizer, RowRefused, for_template
from finetune_trainer.data.rows import Problem
from rows import GENERATION, LLAMA_LIKE, NO_SYSTEM, THINKING, assistant, save_light_model, system, user
from tiny import CHAT_TEMPLATE

BOS, END = 1, 2


@pytest.fixture
def chat_with(tmp_path):
    return lambda template: ChatTokenizer(save_light_model(tmp_path / "model", template))


def text(chat, ids):
    return chat.encoder.decode(list(ids), skip_special_tokens=False)


def trained(chat, row):
    """The text of each trained span."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], row.targets.astype(int), [0]])))
    return [text(chat, row.tokens[begin:end]) for begin, end in edges.reshape(-1, 2)]


@pytest.mark.parametrize(
    ("template", "header", "end"),
    [(CHAT_TEMPLATE, "<|assistant|>\n", "<|end|>\n"), (LLAMA_LIKE, "<|assistant|>\n\n", "<|end|>")],
)
def test_the_answer_is_what_follows_the_generation_header(chat_with, template, header, end):
    chat = chat_with(template)
    pair = chat.pair([user("Hi?")], None, assistant("yes"), assistant("no thanks"))
    assert text(chat, pair.prompt).endswith(header)
    assert text(chat, pair.preferred) == f"yes{end}"
    assert text(chat, pair.non_preferred) == f"no thanks{end}"
    for answer in (pair.preferred, pair.non_preferred):
        assert np.count_nonzero(answer == END) == 1
        assert np.count_nonzero(np.concatenate([pair.prompt, answer]) == BOS) == 1


def test_bos_stands_once_even_if_the_tokenizer_adds_one(tmp_path):
    folder = save_light_model(tmp_path / "model")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<|begin|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<|begin|>": {"id": "<|begin|>", "ids": [BOS], "tokens": ["<|begin|>"]}},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    chat = ChatTokenizer(folder)
    assert chat.encoder.encode("x").ids[0] == BOS  # it does add one where it may
    pair = chat.pair([user("Hi?")], None, assistant("yes"), assistant("no"))
    assert np.count_nonzero(pair.prompt == BOS) == 1


def test_answers_that_begin_alike_are_split_from_the_prompt_all_the_same(chat_with):
    chat = chat_with(CHAT_TEMPLATE)
    pair = chat.pair([user("Hi?")], None, assistant("same start, one"), assistant("same start, two"))
    assert text(chat, pair.preferred).startswith("same start, one")
    assert text(chat, pair.non_preferred).startswith("same start, two")


def test_tokens_that_merge_across_the_border_belong_to_the_answer(tmp_path):
    """The header ends with "\\n", the answer begins with two; in the whole the first two are one token."""
    folder = save_light_model(tmp_path / "model")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["merges"] = [["Ċ", "Ċ"]]
    tokenizer["model"]["vocab"]["ĊĊ"] = 300
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    chat = ChatTokenizer(folder)
    pair = chat.pair([user("Hi?")], None, assistant("\n\nyes"), assistant("no"))
    assert text(chat, pair.prompt).endswith("<|assistant|>")
    assert text(chat, pair.preferred) == "\n\n\nyes<|end|>\n"
    assert text(chat, pair.non_preferred) == "\nno<|end|>\n"
    alone = chat.conversation([user("Hi?"), assistant("\n\nyes")], None)
    assert trained(chat, alone) == ["\n\n\nyes<|end|>\n"]


def test_a_thinking_template_borders_inside_the_generation_header(chat_with):
    """Asked to answer it opens a thought; in the whole the thought is empty: the prompt is no prefix."""
    chat = chat_with(THINKING)
    pair = chat.pair([user("Hi?")], None, assistant("yes"), assistant("no"))
    assert text(chat, pair.prompt) == "<|user|>\nHi?<|end|>\n<|assistant|>\n<think>\n"
    assert text(chat, pair.preferred) == "\n</think>\n\nyes<|end|>\n"


@pytest.mark.parametrize(
    "template",
    [
        # renders the user's turn differently once there is an answer
        "{% for m in messages %}<|{{ m.role }}|>{% if messages[-1].role == 'assistant' %}!{% endif %}{{ m.content }}"
        "<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}",
        # a header of more than eight tokens that no answer bears
        CHAT_TEMPLATE.replace("<|assistant|>\n{% endif %}", "<|assistant|>\nthink about it{% endif %}"),
        # nothing in common at all
        "{% if add_generation_prompt %}<|user|>{% else %}<|system|>{% endif %}{{ messages[-1].content }}",
    ],
)
def test_a_border_before_or_far_from_the_header_is_refused(chat_with, template):
    chat = chat_with(template)
    with pytest.raises(RowRefused) as refused:
        chat.pair([user("Hi?")], None, assistant("yes"), assistant("no"))
    assert refused.value.problem == Problem("", Code.BORDER_UNCLEAR)
    with pytest.raises(RowRefused) as refused:
        chat.conversation([user("Hi?"), assistant("yes")], None)
    assert refused.value.problem == Problem("", Code.BORDER_UNCLEAR)


@pytest.mark.parametrize(
    "template", [NO_SYSTEM, "{{ messages[5].role }}{{ 'a' + 1 }}", "{{ nothing.at.all }}", "{% if"]
)
def test_what_a_template_raises_refuses_the_row(chat_with, template):
    chat = chat_with(template)
    with pytest.raises(RowRefused) as refused:
        chat.pair([system("Be brief."), user("Hi?")], None, assistant("yes"), assistant("no"))
    assert refused.value.problem == Problem("messages", Code.TEMPLATE_REFUSED)


def test_answers_that_the_template_makes_alike_are_refused(chat_with):
    with pytest.raises(RowRefused) as refused:
        chat_with(LLAMA_LIKE).pair([user("Hi?")], None, assistant("yes"), assistant(" yes\n"))
    assert refused.value.problem.code is Code.IDENTICAL_ANSWERS


def test_an_answer_that_the_template_swallows_is_refused(chat_with):
    silent = "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}"
    with pytest.raises(RowRefused) as refused:
        chat_with(silent).pair([user("Hi?")], None, assistant("yes"), assistant("no"))
    assert refused.value.problem == Problem("preferred_output", Code.EMPTY_ANSWER)
    with pytest.raises(RowRefused) as refused:
        chat_with(silent).conversation([user("Hi?"), assistant("yes")], None)
    assert refused.value.problem == Problem("messages", Code.EMPTY_ANSWER)


TALK = [system("Be brief."), user("One?"), assistant("Ja – 1."), user("Two?"), assistant("2."), user("bye")]


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, GENERATION])
def test_every_answer_is_trained_with_its_end_of_turn(chat_with, template):
    """By rendering turn after turn, or by the template's own mark: the same spans."""
    chat = chat_with(template)
    row = chat.conversation(TALK, None)
    assert trained(chat, row) == ["Ja – 1.<|end|>\n", "2.<|end|>\n"]
    assert not row.last_turn_only
    assert text(chat, row.tokens).endswith("2.<|end|>\n")
    assert row.tokens.dtype == np.int32
    assert not row.targets[0]


def test_the_first_token_of_all_is_never_trained(chat_with):
    """Nothing stands before it from which it could be predicted."""
    bare = "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
    row = chat_with(bare).conversation([assistant("abc")], None)
    assert row.targets.tolist() == [False, True, True]


def test_a_template_that_renders_earlier_answers_anew_trains_the_last_one(chat_with):
    chat = chat_with(THINKING)
    row = chat.conversation(TALK, None)
    assert row.last_turn_only
    assert trained(chat, row) == ["\n</think>\n\n2.<|end|>\n"]
    alone = chat.conversation(TALK[:3], None)
    assert not alone.last_turn_only
    assert trained(chat, alone) == ["\n</think>\n\nJa – 1.<|end|>\n"]


def test_sft_on_a_preferred_answer_trains_the_tokens_that_dpo_compares(chat_with):
    for template in (CHAT_TEMPLATE, LLAMA_LIKE, THINKING):
        chat = chat_with(template)
        pair = chat.pair(TALK[:4], None, TALK[4], assistant("3."))
        row = chat.conversation(TALK[:5], None)
        assert row.tokens.tolist() == [*pair.prompt, *pair.preferred]
        assert row.targets[-pair.preferred.size :].all()
        assert not row.targets[pair.prompt.size - 1]


def test_tools_and_calls_reach_the_template(chat_with):
    chat = chat_with(
        "{% for t in tools or [] %}{{ t | tojson }};{% endfor %}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}"
        "{% for c in m.tool_calls or [] %}{{ c.function.name }}{{ c.function.arguments | tojson }}{% endfor %}<|end|>"
        "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    calls = [{"function": {"name": "look", "arguments": '{"at": "sky"}'}}]
    messages = for_template([user("Look."), {"role": "assistant", "content": None, "tool_calls": calls}])
    row = chat.conversation(messages, [{"name": "look"}])
    assert text(chat, row.tokens).startswith('{"name": "look"};<|user|>Look.')
    assert trained(chat, row) == ['look{"at": "sky"}<|end|>']


def test_arguments_that_are_no_json_stay_as_they_are():
    message = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "not json"}}]}
    assert for_template([message])[0]["tool_calls"][0]["function"]["arguments"] == "not json"


def test_the_digest_tells_templates_and_vocabularies_apart(tmp_path):
    folders = [
        save_light_model(tmp_path / "a"),
        save_light_model(tmp_path / "b"),
        save_light_model(tmp_path / "c", GENERATION),
    ]
    digests = [ChatTokenizer(folder).digest for folder in folders]
    assert digests[0] == digests[1] != digests[2]


def test_a_tokenizer_that_cuts_by_itself_is_kept_from_it(tmp_path):
    folder = save_light_model(tmp_path / "model")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    chat = ChatTokenizer(folder)
    assert chat.conversation([user("a long enough text"), assistant("x")], None).tokens.size > 20
    assert chat.pair([user("a long enough text")], None, assistant("x"), assistant("y")).prompt.size > 20
