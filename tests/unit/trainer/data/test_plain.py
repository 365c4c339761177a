"""Texts without a template: BOS and EOS once, and a border that no merge hides."""

import json

import pytest

from chats import BOS, END, adding_bos, text
from finetune_api.findings import DataErrorCode as Code
from finetune_trainer.data import plain
from finetune_trainer.data.chat import ChatTokenizer, RowRefused
from finetune_trainer.data.examples import TextPair
from rows import save_light_model


def without(folder, token):
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, token: None}))
    return folder


@pytest.fixture
def chat(tmp_path):
    return ChatTokenizer(save_light_model(tmp_path / "plain", template=None))


@pytest.fixture
def led(tmp_path):
    return ChatTokenizer(adding_bos(save_light_model(tmp_path / "led", template=None)))


def test_bos_and_eos_stand_once(chat, led):
    assert (chat.adds_bos, led.adds_bos) == (False, True)
    assert text(chat, plain.text(chat, "a b")) == "a b<|end|>"
    assert text(led, plain.text(led, "a b")) == "<|begin|>a b<|end|>"
    assert text(led, plain.text(led, "<|begin|>a b<|end|>")) == "<|begin|>a b<|end|>"


def test_a_pair_of_texts_shares_its_prompt(led):
    pair = plain.text_pair(led, TextPair("Q: ", "yes", "yes, no<|end|>"))
    assert text(led, pair.prompt) == "<|begin|>Q: "
    assert (text(led, pair.preferred), text(led, pair.non_preferred)) == ("yes<|end|>", "yes, no<|end|>")
    with pytest.raises(RowRefused) as refused:
        plain.text_pair(led, TextPair("Q: ", "yes", "yes<|end|>"))
    assert refused.value.code is Code.IDENTICAL_ANSWERS


def test_an_empty_prompt_is_bos_or_an_error(chat, tmp_path):
    prompt, answer = plain.completion(chat, "", "a")
    assert (prompt.tolist(), text(chat, answer)) == ([BOS], "a<|end|>")
    bare = ChatTokenizer(without(save_light_model(tmp_path / "bare", template=None), "bos_token"))
    with pytest.raises(RowRefused) as refused:
        plain.completion(bare, "", "a")
    assert refused.value.code is Code.EMPTY_PROMPT


def test_tokens_that_merge_across_the_border_belong_to_the_answer(tmp_path):
    folder = save_light_model(tmp_path / "model", template=None)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["merges"] = [["a", "b"]]
    tokenizer["model"]["vocab"]["ab"] = 300
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    chat = ChatTokenizer(folder)
    prompt, answer = plain.completion(chat, "xa", "bc")
    assert (text(chat, prompt), text(chat, answer)) == ("x", "abc<|end|>")


def test_a_tokenizer_without_an_end_cannot_end_a_text(tmp_path):
    chat = ChatTokenizer(without(save_light_model(tmp_path / "m", template=None), "eos_token"))
    assert (chat.bos, chat.eos) == (BOS, None)
    for call in (lambda: plain.text(chat, "a"), lambda: plain.completion(chat, "a", "b")):
        with pytest.raises(RowRefused) as refused:
            call()
        assert refused.value.code is Code.NO_END_TOKEN
    assert END == 2
