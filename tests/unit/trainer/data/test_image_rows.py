"""Rows with images as tokens: an image has its tokens where it is shown, and none of them is learned."""

from __future__ import annotations

import json

import numpy as np
import pytest

from finetune_api.data import DataOptions, Overlong
from finetune_api.method import MethodType, TrainOnInputs
from finetune_trainer.__main__ import main
from finetune_trainer.data.chat import ChatTokenizer
from finetune_trainer.data.check import FileCheck, Rules
from finetune_trainer.data.model import read_without_weights
from finetune_trainer.data.report import Findings
from finetune_trainer.data.seen import Seen
from finetune_trainer.data.tokenise import Tokeniser
from finetune_trainer.data.tokens import open_cache, write_cache
from pictures import colour_pairs, colour_talks, pair_about, picture, shown
from preparing import quiet
from rows import GENERATION, assistant, conversation, preference, write_rows
from tiny import VISION_TEMPLATE

SMALL, WIDE = picture(16, 16), picture(24, 16)
"""4 and 6 tokens."""


@pytest.fixture(scope="module")
def chat(vision_model) -> ChatTokenizer:
    return read_without_weights(str(vision_model), None).chat


@pytest.fixture
def checked(tmp_path):
    """Rows as `method` makes of them, and the codes of what is wrong with any."""

    def checked(chat, *rows, method=MethodType.DPO, limit=2048, inputs=TrainOnInputs.AUTO, **options):
        file = write_rows(tmp_path / "rows.jsonl", *rows)
        rules = Rules(method, Tokeniser(chat, 320, inputs), limit, DataOptions(**options))
        with Findings("trainingFile") as findings, Seen(prompts=False) as seen:
            check = FileCheck(file, "rows.jsonl", rules, findings, seen)
            return list(check.rows(quiet)), dict(findings.broken + findings.warned)

    return checked


def of_images(chat, tokens) -> int:
    return int((tokens == chat.vision.token).sum())


def test_a_pair_has_the_tokens_of_its_images_in_its_prompt(chat, checked):
    [row], found = checked(chat, pair_about("What", SMALL, "and", WIDE, "?"))
    assert found == {}
    assert [of_images(chat, part) for part in (row.prompt, row.preferred, row.non_preferred)] == [10, 0, 0]
    text = chat.tokenizer.decode(row.prompt)
    assert text == f"<|user|>\nWhat{image(4)}and{image(6)}?<|end|>\n<|assistant|>\n"
    assert [len(file) > 50 for file in row.images] == [True, True]
    assert bytes(row.images[0][:4]) == b"\x89PNG"


def image(tokens: int) -> str:
    return f"<|vision|>{tokens * '<|image|>'}<|/vision|>"


def test_under_sft_the_answers_are_learned(chat, checked):
    talk = {"messages": [shown(SMALL, "1?"), assistant("one"), shown("2?", WIDE), assistant("two")]}
    [row], found = checked(chat, talk, method=MethodType.SFT)
    assert found == {}
    learned = chat.tokenizer.decode(row.tokens[row.targets])
    assert (learned, of_images(chat, row.tokens), len(row.images)) == ("one<|end|>\ntwo<|end|>\n", 10, 2)


def test_the_tokens_of_images_are_never_learned(chat, checked):
    [row], _ = checked(chat, colour_talks(1)[0], method=MethodType.SFT, inputs=TrainOnInputs.ALWAYS)
    of_image = row.tokens == chat.vision.token
    assert of_image.sum() >= 4
    assert not row.targets[of_image].any()
    assert row.targets[~of_image][1:].all()


def test_images_after_the_last_answer_go_with_their_message(chat, checked):
    talk = {"messages": [shown(SMALL, "1?"), assistant("one"), shown(WIDE, "2?"), assistant("two") | {"weight": 0}]}
    [row], _ = checked(chat, talk, method=MethodType.SFT)
    assert (of_images(chat, row.tokens), len(row.images)) == (4, 1)
    [row], _ = checked(chat, talk, method=MethodType.SFT, inputs=TrainOnInputs.ALWAYS)
    assert (of_images(chat, row.tokens), len(row.images)) == (10, 2)


def test_a_template_that_marks_its_answers_is_rendered_turn_after_turn(vision_model, checked):
    marking = GENERATION.replace("{% else %}{{ m.content }}", "{% else %}{{ 'Look: <|image|>' }}")
    chat = read_without_weights(str(vision_model), marking).chat
    assert chat.marks_generation
    [row], found = checked(chat, {"messages": [shown(SMALL, "1?"), assistant("one")]}, method=MethodType.SFT)
    assert found == {}
    assert chat.tokenizer.decode(row.tokens[row.targets]) == "one<|end|>\n"
    assert of_images(chat, row.tokens) == 4


def test_a_row_that_is_too_long_loses_turns_with_their_images(chat, checked):
    row = pair_about("2?", SMALL)
    row["input"]["messages"][:0] = [shown(picture(64, 64), "1?"), assistant("one")]
    [made], found = checked(chat, row, limit=40, overlong=Overlong.TRUNCATE)
    assert found == {"Truncated": 1}
    assert (of_images(chat, made.prompt), len(made.images)) == (4, 1)
    assert checked(chat, row, limit=40)[1] == {"PromptTooLong": 1}


@pytest.mark.parametrize("place", ["input", "answer"])
def test_a_text_that_holds_the_token_of_images_is_refused(chat, checked, place):
    row = pair_about(SMALL, "What is <|image|>?" if place == "input" else "What?", preferred="It is <|image|>.")
    assert checked(chat, row)[1] == {"ImageToken": 1}
    assert checked(chat, preference("What is <|image|>?"))[1] == {"ImageToken": 1}
    assert checked(chat, {"text": "See <|image|>"}, method=MethodType.SFT)[1] == {"ImageToken": 1}
    assert checked(chat, {"prompt": "a<|image|>", "chosen": "b", "rejected": "c"})[1] == {"ImageToken": 1}


def test_a_template_that_shows_no_images_is_refused(vision_model, checked):
    blind = read_without_weights(str(vision_model), VISION_TEMPLATE.replace("<|image|>", "")).chat
    assert checked(blind, pair_about(SMALL, "What?"))[1] == {"ImageToken": 1}
    assert checked(blind, preference())[1] == {}


def test_a_model_that_takes_no_images_is_told_once(light_model, checked):
    chat = ChatTokenizer(light_model)
    rows, found = checked(chat, preference("a"), *colour_pairs(3))
    assert (len(rows), found) == (1, {"ImagesUnsupported": 1})


def test_rows_that_differ_in_their_image_alone_are_different(chat, checked):
    same = [pair_about(picture(colour=colour), "What?") for colour in ("red", "blue", "red")]
    assert checked(chat, *same)[1] == {"DuplicateRow": 1}


def test_a_cache_gives_back_the_images_of_each_row(chat, checked, tmp_path):
    given, _ = checked(chat, *colour_pairs(2), preference("no image"), pair_about(SMALL, WIDE, "Two?"))
    write_cache(tmp_path / "pairs", Rules(MethodType.DPO, None, 1, DataOptions()).kind, iter(given))
    cache = open_cache(tmp_path / "pairs")
    assert [len(cache.pair(row).images) for row in range(4)] == [1, 1, 0, 2]
    for row, expected in enumerate(given):
        assert all(np.array_equal(*files) for files in zip(cache.pair(row).images, expected.images, strict=True))
    write_cache(tmp_path / "plain", Rules(MethodType.DPO, None, 1, DataOptions()).kind, iter(given[2:3]))
    assert open_cache(tmp_path / "plain").images is None
    assert not list((tmp_path / "plain").glob("image*"))


def test_the_command_counts_images(vision_model, tmp_path, capsys):
    file = write_rows(tmp_path / "rows.jsonl", *colour_pairs(3, without=1))
    assert main(["check", str(file), "--model", str(vision_model), "--method", "DPO"]) == 0
    assert "in 3 rows with 2 images to train on" in " ".join(capsys.readouterr().out.split())
    assert main(["check", str(file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["errorCount"] == 0


def test_texts_of_a_model_that_sees_are_as_those_of_any(chat, checked):
    [row], found = checked(chat, conversation("Which?", "This."), method=MethodType.SFT)
    assert (found, row.images) == ({}, ())
