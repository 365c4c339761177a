"""What a run leaves for its report: its sample rows, with the scores of the weights before and after."""

from __future__ import annotations

from threading import Event

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from finetune_api.failures import FailureCode
from finetune_api.trainer import Stage
from finetune_trainer.data.chat import ChatTokenizer
from finetune_trainer.failures import RunFailed
from finetune_trainer.out.facts import Passage, read_facts
from finetune_trainer.out.progress import Reporter
from finetune_trainer.run import loop as loop_module
from finetune_trainer.run import train as train_module
from finetune_trainer.run.reporting import passage
from finetune_trainer.step import gradient as gradient_module
from runs import prepared, run
from training import QUICK, conversation_rows, local, manifest, preference_rows, trainer_config, write_jsonl


@pytest.fixture
def done(whole):
    return read_facts(whole)


def score(model, tokenizer, row, side):
    """Log-probability of an answer, as one would write it down."""
    messages = row["input"]["messages"]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    line = torch.tensor([tokenizer.apply_chat_template(messages + row[side])["input_ids"]])
    with torch.no_grad():
        logps = torch.log_softmax(model(line).logits[0, :-1], -1).gather(1, line[0, 1:, None])
    return logps[len(prompt) - 1 :].sum().item()


def test_scores_before_and_after_are_those_of_plain_peft(done, tiny_model, whole):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    sides = ("preferred_output", "non_preferred_output")
    rows = preference_rows(3, seed=1)
    before = [[score(base, tokenizer, row, side) for side in sides] for row in rows]
    adapted = PeftModel.from_pretrained(base, whole / "adapter").eval()
    after = [[score(adapted, tokenizer, row, side) for side in sides] for row in rows]
    assert done.held_out
    for sample, was, became in zip(done.samples, before, after, strict=True):
        assert [a.before for a in sample.answers] == pytest.approx(was, abs=1e-4)
        assert [a.after for a in sample.answers] == pytest.approx(became, abs=1e-4)
        margin = 0.1 * ((became[0] - was[0]) - (became[1] - was[1]))
        assert (sample.margin_before, sample.margin_after) == pytest.approx((0, margin), abs=1e-5)


def test_rows_are_shown_as_the_model_sees_them(done):
    sample, row = done.samples[0], preference_rows(3, seed=1)[0]
    question, reply = row["input"]["messages"][0]["content"], row["preferred_output"][0]["content"]
    assert sample.prompt.text == f"<|begin|><|user|>\n{question}<|end|>\n<|assistant|>\n"
    assert sample.answers[0].passage.text == f"{reply}<|end|>\n"
    assert {"<|begin|>", "<|end|>", "<|assistant|>"} <= set(done.control_tokens)


def test_the_evaluations_are_not_done_again_for_it(tiny_model, tmp_path, monkeypatch):
    write_jsonl(tmp_path / "train.jsonl", preference_rows(4))
    validation = write_jsonl(tmp_path / "eval.jsonl", preference_rows(3, seed=1))
    config = prepared(
        trainer_config(tiny_model, tmp_path, validationFile=f"file://{validation}", evaluation={"nEvals": 2})
    )
    real, passes = gradient_module.scores, []

    def counted(policy, table, recipe, rows, before_each):
        passes.append(len(rows))
        return real(policy, table, recipe, rows, before_each)

    monkeypatch.setattr("finetune_trainer.step.fitting.scores", counted)
    run(config)
    assert passes == [4, 3, 3, 3, 3], "the reference of both files, the baseline, two evaluations"
    assert len(read_facts(tmp_path / "out").samples) == 3


def test_without_validation_rows_some_that_were_trained_on_are_shown(tiny_model, tmp_path):
    write_jsonl(tmp_path / "train.jsonl", preference_rows(12))
    run(prepared(trainer_config(tiny_model, tmp_path)))
    told = read_facts(tmp_path / "out")
    assert not told.held_out
    assert [sample.line for sample in told.samples] == [1, 2, 3, 4, 5, 7, 8, 9, 10, 11]
    assert all(sample.margin_before == pytest.approx(0, abs=1e-5) and sample.gain for sample in told.samples)


def test_without_a_reference_the_margin_before_is_that_of_the_starting_weights(tiny_model, tmp_path):
    write_jsonl(tmp_path / "train.jsonl", preference_rows(3))
    method = {"type": "DPO", "dpo": {"beta": 2.0, "simpoGamma": 1.0}}
    run(prepared(trainer_config(tiny_model, tmp_path, trainingMethod=method)))
    for sample in read_facts(tmp_path / "out").samples:
        better, worse = sample.answers
        margin = 2.0 * (better.before / better.tokens - worse.before / worse.tokens)
        assert sample.margin_before == pytest.approx(margin, abs=1e-9)
        assert margin != 0


def test_of_a_conversation_the_trained_answer_is_told(tiny_model, tmp_path):
    write_jsonl(tmp_path / "train.jsonl", conversation_rows(6))
    run(prepared(trainer_config(tiny_model, tmp_path, trainingMethod={"type": "SFT"})))
    told = read_facts(tmp_path / "out")
    assert len(told.samples) == 6
    for sample, row in zip(told.samples, conversation_rows(6), strict=True):
        (answer,) = sample.answers
        assert answer.passage.text.startswith(row["messages"][1]["content"])
        assert answer.before < 0
        assert (sample.margin_before, sample.margin_after) == (None, None)
        assert sample.gain > 0, "it was trained on"


def test_of_a_long_text_its_beginning_or_its_end_stays(tiny_model):
    chat = ChatTokenizer(tiny_model)
    (tokens,) = chat.encode(["begin \U0001f469\u200d\U0001f467 end"])
    assert passage(chat, tokens, 8) == Passage(text="begin \U0001f469\u200d", omitted=5)
    assert passage(chat, tokens, 5, from_end=True) == Passage(text="\U0001f467 end", omitted=8)
    assert passage(chat, tokens, 100).omitted == 0
    assert passage(chat, tokens[:-6], 100).text.endswith("\ufffd"), "a character that is cut inside"


def test_the_text_of_rows_stands_in_the_report_and_nowhere_else(tiny_model, tmp_path, capfd):
    rows = preference_rows(6)
    for row in rows:
        row["preferred_output"][0]["content"] += " zanzibar"
    training_file = write_jsonl(tmp_path / "train.jsonl", rows)
    assert local(tmp_path, manifest(tiny_model, training_file, hyperparameters=QUICK)) == 0
    output = tmp_path / "out" / "dpo"
    holding = {path.name for path in output.rglob("*") if path.is_file() and b"zanzibar" in path.read_bytes()}
    assert holding == {"report.html", "report.json"}
    assert "zanzibar" not in "".join(capfd.readouterr())


def test_a_run_that_diverged_leaves_its_page_and_says_where(config, tmp_path, monkeypatch):
    config = prepared(config)
    real, seen = loop_module.clip, iter(range(1000))

    def clipped(parameters, limit):
        norm = real(parameters, limit)
        return norm * float("nan") if next(seen) >= 7 else norm

    monkeypatch.setattr(loop_module, "clip", clipped)
    with pytest.raises(RunFailed, match="finite"):
        run(config)
    told = read_facts(tmp_path / "out")
    assert told.report.failure.code == "Diverged"
    assert told.report.output.report_uri == f"file://{tmp_path}/out/report.html"
    page = (tmp_path / "out" / "report.html").read_text()
    assert "without finite numbers" in page
    assert told.samples, "as the last evaluation scored them"


def test_a_page_that_cannot_be_written_does_not_hide_why_a_run_failed(config, monkeypatch):
    config = prepared(config)
    real, seen = loop_module.clip, iter(range(1000))

    def clipped(parameters, limit):
        return real(parameters, limit) * (float("nan") if next(seen) >= 7 else 1.0)

    def full(*_args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(loop_module, "clip", clipped)
    monkeypatch.setattr(train_module, "write_report", full)
    reporter = Reporter(config.job, Stage.TRAIN, "pod-1")
    with pytest.raises(RunFailed) as end:
        train_module.train(config, reporter, Event())
    assert end.value.failure.code is FailureCode.DIVERGED
    assert reporter.report.output is None, "there is no page to look at"
