"""Whole runs on a tiny model: what they leave, how they stop, and that stopping changes nothing."""

from __future__ import annotations

import json
import os
import signal
import time
from threading import Event

import pytest
import torch

from finetune_api.report import FailureCode
from finetune_api.trainer import Stage
from finetune_trainer.failures import RunFailed
from finetune_trainer.layout import Layout
from finetune_trainer.out.progress import Reporter
from finetune_trainer.prepare import prepare
from finetune_trainer.run import train as train_module
from finetune_trainer.run.train import train
from finetune_trainer.step import reference as reference_module
from finetune_trainer.step.fitting import Fitter
from training import conversation_rows, metrics_rows, preference_rows, trainer_config, write_jsonl

EPOCHS = {"nEpochs": 8, "learningRate": 1e-2, "seed": 7}
"""8 epochs of 3 steps."""
DROPOUT = {"rank": 4, "alpha": 8, "dropout": 0.3, "trainableModules": ["all-linear"]}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_jsonl(folder / "train.jsonl", preference_rows(10))
    write_jsonl(folder / "eval.jsonl", preference_rows(3, seed=1))
    return folder


@pytest.fixture(scope="module")
def settings(tiny_model, data):
    """24 steps with dropout, four evaluations, three checkpoints, and a saved state after every step."""
    return trainer_config(
        tiny_model,
        data,
        validationFile=f"file://{data}/eval.jsonl",
        hyperparameters=EPOCHS,
        lora=DROPOUT,
        evaluation={"nEvals": 4},
        checkpointing={"nCheckpoints": 3, "recoveryPeriodSeconds": 0},
    )


@pytest.fixture
def config(settings, tmp_path):
    return settings.model_copy(update={"output_uri": f"file://{tmp_path}/out"})


def prepared(config):
    prepare(config, lambda **_fields: None)
    return config


def run(config, stopping=None):
    reporter = Reporter(config.job, Stage.TRAIN, "pod-1")
    train(config, reporter, stopping or Event())
    return reporter.report


@pytest.fixture(scope="module")
def whole(settings, tmp_path_factory):
    """What a run leaves that never stopped."""
    folder = tmp_path_factory.mktemp("whole")
    run(prepared(settings.model_copy(update={"output_uri": f"file://{folder}"})))
    return folder


def weights(output):
    return {p.relative_to(output).as_posix(): p.read_bytes() for p in sorted(output.rglob("*.safetensors"))}


def published(output):
    entries = json.loads((output / "manifest.json").read_text())["checkpoints"]
    return [{key: value for key, value in entry.items() if key not in ("time", "uri")} for entry in entries]


def assert_same(output, whole):
    assert weights(output) == weights(whole)
    assert metrics_rows(output / "metrics.jsonl") == metrics_rows(whole / "metrics.jsonl")
    assert published(output) == published(whole)
    assert not (output / ".finetune").exists()


def test_a_run_publishes_measures_and_reports(config, tmp_path):
    report = run(prepared(config))
    output = tmp_path / "out"
    assert [(c.name, c.step, c.type) for c in report.checkpoints] == [
        ("dpo:8", 8, "Intermediate"),
        ("dpo:16", 16, "Intermediate"),
        ("dpo:24", 24, "Final"),
    ]
    assert report.output.adapter_uri == f"file://{output}/adapter"
    assert (report.progress.display, report.progress.percentage, report.progress.epoch) == ("24/24", 100, 8.0)
    assert report.resumed_from_step == 0
    assert report.recovery.step == 24
    rows = metrics_rows(output / "metrics.jsonl")
    assert [row["step"] for row in rows if "eval/loss" in row] == [0, 6, 12, 18, 24]
    assert [row["step"] for row in rows if "train/loss" in row] == list(range(1, 25))
    assert report.metrics.eval["loss"] == pytest.approx(rows[-1]["eval/loss"], rel=1e-5)
    newest = next(row for row in rows if row["step"] == 6 and "eval/loss" in row)
    carried = report.checkpoints[0].metrics["evalLoss"]
    assert carried == pytest.approx(newest["eval/loss"], rel=1e-5), "the newest evaluation at or before step 8"
    adapter = output / "adapter" / "adapter_model.safetensors"
    assert adapter.read_bytes() == (output / "checkpoints" / "step-24" / adapter.name).read_bytes()
    assert rows[0]["eval/loss"] == pytest.approx(0.6931472, abs=1e-6)
    assert rows[-1]["eval/rewards/chosen"] != 0


def test_each_epoch_trains_on_every_row_and_counts_its_tokens(config, tmp_path):
    run(prepared(config))
    tokens = [
        row["train/num_tokens"] for row in metrics_rows(tmp_path / "out" / "metrics.jsonl") if "train/loss" in row
    ]
    assert len({tokens[3 * k + 2] - (tokens[3 * k - 1] if k else 0) for k in range(8)}) == 1


def killed(config, lines, number):
    """Train in a process of its own; once metrics.jsonl has so many lines, send it a signal. Returns its status."""
    metrics = Layout.of(config).metrics
    child = os.fork()
    if child == 0:
        stopping = Event()
        signal.signal(signal.SIGTERM, lambda *_: stopping.set())
        code = 0
        try:
            run(config, stopping)
        except RunFailed as end:
            code = int(end.failure.exit_code)
        finally:
            os._exit(code)
    deadline = time.monotonic() + 120
    while not metrics.exists() or metrics.read_bytes().count(b"\n") < lines:
        assert time.monotonic() < deadline
        assert os.waitpid(child, os.WNOHANG) == (0, 0), "the run ended by itself"
        time.sleep(0.001)
    os.kill(child, number)
    return os.waitpid(child, 0)[1]


def test_killed_three_times_a_run_ends_as_if_it_never_was(config, whole, tmp_path):
    config = prepared(config)
    for lines in (3, 9, 15):
        status = killed(config, lines, signal.SIGKILL)
        assert os.WIFSIGNALED(status)
        assert os.WTERMSIG(status) == signal.SIGKILL
    report = run(config)
    assert report.resumed_from_step >= 10
    assert_same(tmp_path / "out", whole)


def test_asked_to_stop_a_run_saves_its_last_step_whatever_the_period(config, whole, tmp_path):
    hourly = {"nCheckpoints": 3, "recoveryPeriodSeconds": 3600}
    config = prepared(config.model_copy(update={"checkpointing": type(config.checkpointing).model_validate(hourly)}))
    status = killed(config, 8, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(status) == 3
    report = run(config)
    assert report.resumed_from_step >= 6
    assert_same(tmp_path / "out", whole)


class Stopping(Event):
    """Is set by itself when asked for the n-th time: at a chosen micro-batch."""

    def __init__(self, after):
        super().__init__()
        self.left = after

    def is_set(self):
        self.left -= 1
        return self.left < 0


def attempt(config, stopping):
    """The step that a run went on from to its end, or why it ended early."""
    try:
        return run(config, stopping).resumed_from_step
    except RunFailed as end:
        return end.failure.code


def test_stopped_at_every_third_micro_batch_a_run_ends_as_if_it_never_was(config, whole, tmp_path):
    config = prepared(config)
    ends = [attempt(config, Stopping(3)) for _ in range(30)]
    assert ends.count(FailureCode.STOPPED) >= 8
    assert ends[-1] >= 20, "the last attempt went on from near the end"
    assert_same(tmp_path / "out", whole)


def damage_newest(config):
    newest = max(Layout.of(config).recovery.glob("step-*"), key=lambda f: int(f.name[5:]))
    file = newest / "weights.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    return newest


def test_a_damaged_state_is_skipped_with_a_warning(config, whole, tmp_path):
    config = prepared(config)
    with pytest.raises(RunFailed):
        run(config, Stopping(20))
    newest = damage_newest(config)
    report = run(config)
    assert report.resumed_from_step == int(newest.name[5:]) - 1
    assert [(w.reason, newest.name in w.message) for w in report.warnings] == [("RecoverySkipped", True)]
    assert_same(tmp_path / "out", whole)


def test_a_state_of_other_settings_is_never_resumed(config, tmp_path):
    config = prepared(config)
    with pytest.raises(RunFailed):
        run(config, Stopping(20))
    hyper = config.hyperparameters.model_copy(update={"learning_rate": 3e-3})
    report = run(config.model_copy(update={"hyperparameters": hyper}))
    assert report.resumed_from_step == 0
    assert {w.reason for w in report.warnings} == {"RecoverySkipped"}
    assert metrics_rows(tmp_path / "out" / "metrics.jsonl")[1]["train/learning_rate"] == 3e-3


def test_killed_after_publishing_a_run_tells_again_what_it_published(config, tmp_path):
    config = prepared(config)
    first = run(config)
    again = Reporter(config.job, Stage.TRAIN, "pod-2")
    train(config, again, Event())
    assert again.report == first.model_copy(update={"pod_uid": "pod-2"})


def test_the_output_of_another_job_is_left_alone(config):
    config = prepared(config)
    run(config)
    other = config.job.model_copy(update={"uid": "another"})
    with pytest.raises(RunFailed, match="holds the output of another job"):
        run(config.model_copy(update={"job": other}))


def test_training_without_prepared_data_says_so(config):
    with pytest.raises(RunFailed, match="invalid at prepared: the data is not prepared") as caught:
        run(config)
    assert caught.value.failure.exit_code == 10


def test_sft_trains_all_weights_and_learns_its_rows(tiny_model, tmp_path):
    write_jsonl(tmp_path / "train.jsonl", conversation_rows(6))
    config = trainer_config(
        tiny_model,
        tmp_path,
        trainingMethod={"type": "SFT"},
        trainingKind="Full",
        lora=None,
        hyperparameters={"nEpochs": 15, "learningRate": 5e-3, "warmupRatio": 0.1},
    )
    report = run(prepared(config))
    losses = [row["train/loss"] for row in metrics_rows(tmp_path / "out" / "metrics.jsonl")]
    assert losses[0] == pytest.approx(5.8, abs=0.3), "about ln 320: a random model"
    assert losses[-1] < losses[0] - 2
    assert report.output.model_uri == f"file://{tmp_path}/out/model"
    assert (tmp_path / "out" / "model" / "chat_template.jinja").is_file()


@pytest.fixture
def poisoned(monkeypatch):
    """Makes the gradients of chosen optimiser steps (from 0) not finite."""
    chosen = set()
    real = Fitter.gradients
    calls = iter(range(1000))

    def gradients(fitter, *rest):
        sums = real(fitter, *rest)
        if next(calls) in chosen:
            next(iter(fitter.policy.trainable.values())).grad.fill_(torch.nan)
        return sums

    monkeypatch.setattr(Fitter, "gradients", gradients)
    return chosen


def test_a_step_without_finite_gradient_changes_nothing_and_is_told(config, poisoned, tmp_path):
    poisoned.update({4, 7})
    report = run(prepared(config))
    assert [(w.reason, w.step) for w in report.warnings] == [("StepSkipped", 8)]
    assert report.warnings[0].message.startswith("2 steps changed nothing")
    rows = [row for row in metrics_rows(tmp_path / "out" / "metrics.jsonl") if "train/loss" in row]
    assert [row["step"] for row in rows if "train/grad_norm" not in row] == [5, 8]
    assert len(rows) == 24


@pytest.mark.parametrize(
    ("bad", "last"), [({5, 6, 7}, 8), (set(range(1, 21, 2)), 20)], ids=["three in a row", "ten in all"]
)
def test_a_run_that_diverges_saves_its_good_state_and_ends(config, poisoned, bad, last):
    poisoned.update(bad)
    with pytest.raises(RunFailed, match=f"not finite at step {last}: lower learningRate") as caught:
        run(prepared(config))
    assert caught.value.failure.exit_code == 15
    assert (Layout.of(config).recovery / f"step-{last}").is_dir()


def test_no_space_is_left_is_said_of_the_output(config, monkeypatch):
    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(train_module.MetricsLog, "append", full)
    with pytest.raises(RunFailed, match="no space is left at file://"):
        run(prepared(config))


def test_no_space_for_the_reference_is_said_of_the_output(config, monkeypatch):
    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(reference_module, "save_file", full)
    with pytest.raises(RunFailed, match="no space is left at file://"):
        run(prepared(config))


def test_diverged_from_the_first_step_on_it_still_saves(config, poisoned):
    poisoned.update({0, 1, 2})
    with pytest.raises(RunFailed, match="not finite at step 3"):
        run(prepared(config))
    assert (Layout.of(config).recovery / "step-3").is_dir()
    poisoned.clear()
    assert run(config).resumed_from_step == 3


def test_what_is_skipped_in_two_attempts_is_told_once(config):
    config = prepared(config)
    for calls in (20, 10):
        with pytest.raises(RunFailed):
            run(config, Stopping(calls))
        damage_newest(config)
    assert [w.reason for w in run(config).warnings] == ["RecoverySkipped"]


@pytest.mark.parametrize("method", ["SFT", "DPO"])
def test_full_training_and_sft_stopped_and_killed_end_as_if_they_never_were(tiny_model, data, tmp_path, method):
    """Dropout needs an adapter, so SFT has one here and DPO trains every weight; several micro-batches a step."""
    adapter = {"trainingMethod": {"type": "SFT"}, "lora": DROPOUT}
    settings = trainer_config(
        tiny_model,
        data,
        validationFile=f"file://{data}/eval.jsonl",
        hyperparameters={"nEpochs": 3, "learningRate": 1e-2, "seed": 7},
        evaluation={"nEvals": 2},
        **(adapter if method == "SFT" else {"trainingKind": "Full", "lora": None}),
    )
    outputs = [tmp_path / "whole", tmp_path / "broken"]
    whole, broken = (prepared(settings.model_copy(update={"output_uri": f"file://{out}"})) for out in outputs)
    run(whole)
    assert killed(broken, 6, signal.SIGKILL) == signal.SIGKILL
    ends = [attempt(broken, Stopping(4)) for _ in range(12)]
    assert FailureCode.STOPPED in ends
    assert ends[-1] >= 6, "from the second epoch or later"
    assert_same(outputs[1], outputs[0])
