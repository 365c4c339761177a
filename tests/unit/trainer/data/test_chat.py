"""Where an answer begins, under templates of different habits."""

import json

import jinja2
import numpy as np
import pytest

from chats import BOS, END, adding_bos, pair_of, talk_of, text, trained
from finetune_api.findings import DataErrorCode as Code
from finetune_trainer.data.chat import ChatTokenizer, Part, RowRefused
from rows import GENERATION, LLAMA_LIKE, NO_SYSTEM, THINKING, assistant, save_light_model, system, user
from tiny import CHAT_TEMPLATE


@pytest.mark.parametrize(
    ("template", "header", "end"),
    [(CHAT_TEMPLATE, "<|assistant|>\n", "<|end|>\n"), (LLAMA_LIKE, "<|assistant|>\n\n", "<|end|>")],
)
def test_the_answer_is_what_follows_the_generation_header(chat_with, template, header, end):
    chat = chat_with(template)
    pair = pair_of(chat, [user("Hi?")], None, assistant("yes"), assistant("no thanks"))
    assert text(chat, pair.prompt).endswith(header)
    assert text(chat, pair.preferred) == f"yes{end}"
    assert text(chat, pair.non_preferred) == f"no thanks{end}"
    for answer in (pair.preferred, pair.non_preferred):
        assert np.count_nonzero(answer == END) == 1
        assert np.count_nonzero(np.concatenate([pair.prompt, answer]) == BOS) == 1


def test_bos_stands_once_even_if_the_tokenizer_adds_one(tmp_path):
    chat = ChatTokenizer(adding_bos(save_light_model(tmp_path / "model")))
    assert chat.encoder.encode("x").ids[0] == BOS  # it does add one where it may
    pair = pair_of(chat, [user("Hi?")], None, assistant("yes"), assistant("no"))
    assert np.count_nonzero(pair.prompt == BOS) == 1


def test_answers_that_begin_alike_are_split_from_the_prompt_all_the_same(chat_with):
    chat = chat_with(CHAT_TEMPLATE)
    pair = pair_of(chat, [user("Hi?")], None, assistant("same start, one"), assistant("same start, two"))
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
    pair = pair_of(chat, [user("Hi?")], None, assistant("\n\nyes"), assistant("no"))
    assert text(chat, pair.prompt).endswith("<|assistant|>")
    assert text(chat, pair.preferred) == "\n\n\nyes<|end|>\n"
    assert text(chat, pair.non_preferred) == "\nno<|end|>\n"
    alone = talk_of(chat, [user("Hi?"), assistant("\n\nyes")], None)
    assert trained(chat, alone) == ["\n\n\nyes<|end|>\n"]


def test_a_thinking_template_borders_inside_the_generation_header(chat_with):
    """Asked to answer it opens a thought; in the whole the thought is empty: the prompt is no prefix."""
    chat = chat_with(THINKING)
    pair = pair_of(chat, [user("Hi?")], None, assistant("yes"), assistant("no"))
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
        pair_of(chat, [user("Hi?")], None, assistant("yes"), assistant("no"))
    assert (refused.value.part, refused.value.code) == (Part.ROW, Code.BORDER_UNCLEAR)
    with pytest.raises(RowRefused) as refused:
        talk_of(chat, [user("Hi?"), assistant("yes")], None)
    assert (refused.value.part, refused.value.code) == (Part.ROW, Code.BORDER_UNCLEAR)


@pytest.mark.parametrize(
    "template", [NO_SYSTEM, "{{ messages[5].role }}{{ 'a' + 1 }}", "{{ nothing.at.all }}", "{% if"]
)
def test_what_a_template_raises_refuses_the_row(chat_with, template):
    chat = chat_with(template)
    with pytest.raises(RowRefused) as refused:
        pair_of(chat, [system("Be brief."), user("Hi?")], None, assistant("yes"), assistant("no"))
    assert (refused.value.part, refused.value.code) == (Part.PROMPT, Code.TEMPLATE_REFUSED)


def test_answers_that_the_template_makes_alike_are_refused(chat_with):
    with pytest.raises(RowRefused) as refused:
        pair_of(chat_with(LLAMA_LIKE), [user("Hi?")], None, assistant("yes"), assistant(" yes\n"))
    assert refused.value.code is Code.IDENTICAL_ANSWERS


def test_an_answer_that_the_template_swallows_is_refused(chat_with):
    silent = "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}"
    with pytest.raises(RowRefused) as refused:
        pair_of(chat_with(silent), [user("Hi?")], None, assistant("yes"), assistant("no"))
    assert (refused.value.part, refused.value.code) == (Part.ANSWER, Code.EMPTY_ANSWER)
    with pytest.raises(RowRefused) as refused:
        talk_of(chat_with(silent), [user("Hi?"), assistant("yes")], None)
    assert (refused.value.part, refused.value.code) == (Part.ANSWER, Code.EMPTY_ANSWER)


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
    assert talk_of(chat, [user("a long enough text"), assistant("x")], None).tokens.size > 20
    assert pair_of(chat, [user("a long enough text")], None, assistant("x"), assistant("y")).prompt.size > 20


def test_a_template_of_the_job_takes_the_place_of_the_model_s(tmp_path):
    folder = save_light_model(tmp_path / "bare", template=None)
    assert not ChatTokenizer(folder).has_template
    chat = ChatTokenizer(folder, CHAT_TEMPLATE)
    assert text(chat, pair_of(chat, [user("Hi?")], None, assistant("yes"), assistant("no")).preferred) == "yes<|end|>\n"
    assert chat.digest != ChatTokenizer(folder).digest


def test_a_template_that_is_none_is_told_with_its_line(tmp_path):
    with pytest.raises(jinja2.TemplateSyntaxError) as found:
        ChatTokenizer(save_light_model(tmp_path / "model"), "{{ bos_token }}\n{% for m in %}")
    assert found.value.lineno == 2


def test_a_template_that_wants_other_messages_is_one(tmp_path):
    ChatTokenizer(save_light_model(tmp_path / "model"), "{{ raise_exception('never') }}")


def test_a_template_cannot_leave_its_sandbox(chat_with):
    chat = chat_with("{{ messages.__class__.__mro__[1].__subclasses__() }}{{ bos_token.__init__.__globals__ }}")
    with pytest.raises(RowRefused) as refused:
        pair_of(chat, [user("Hi?")], None, assistant("yes"), assistant("no"))
    assert refused.value.code is Code.TEMPLATE_REFUSED


def test_in_place_of_an_empty_prompt_stands_bos(tmp_path):
    silent = "{% for m in messages if m.role == 'assistant' %}{{ m.content }}<|end|>{% endfor %}"
    folder = save_light_model(tmp_path / "model", silent)
    pair = pair_of(ChatTokenizer(folder), [user("Hi?")], None, assistant("yes"), assistant("no"))
    assert pair.prompt.tolist() == [BOS]
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "bos_token": None}))
    with pytest.raises(RowRefused) as refused:
        pair_of(ChatTokenizer(folder), [user("Hi?")], None, assistant("yes"), assistant("no"))
    assert (refused.value.part, refused.value.code) == (Part.PROMPT, Code.EMPTY_PROMPT)
