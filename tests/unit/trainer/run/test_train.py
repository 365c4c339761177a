"""Whole runs on a tiny model: what they leave, and what is said of it."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from threading import Event

import pytest

from finetune_api.failures import FailureCode
from finetune_api.trainer import Stage
from finetune_trainer.failures import RunFailed
from finetune_trainer.out.progress import Reporter
from finetune_trainer.run import train as train_module
from finetune_trainer.run.train import train
from finetune_trainer.step import reference as reference_module
from runs import prepared, run
from training import conversation_rows, metrics_rows, trainer_config, write_jsonl


def test_a_run_publishes_measures_and_reports(config, tmp_path):
    report = run(prepared(config))
    output = tmp_path / "out"
    assert [(c.name, c.step, c.type) for c in report.checkpoints] == [
        ("dpo:8", 8, "Intermediate"),
        ("dpo:16", 16, "Intermediate"),
        ("dpo:24", 24, "Final"),
    ]
    assert report.output.adapter_uri == f"file://{output}/adapter"
    assert report.output.report_uri == f"file://{output}/report.html"
    assert (output / "report.html").is_file()
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


@pytest.mark.parametrize(
    ("where", "number"),
    [
        ("metrics.jsonl", errno.ENOSPC),
        ("recovery/", errno.EDQUOT),
        ("reference/", errno.ENOSPC),
        ("checkpoints/", errno.EDQUOT),
    ],
)
def test_a_full_disk_is_told_wherever_it_strikes(config, monkeypatch, where, number):
    config, struck, sync = prepared(config), [], os.fsync

    def full(descriptor):
        path = str(Path(f"/proc/self/fd/{descriptor}").readlink())
        if f"/{where}" in f"{path}/":
            struck.append(path)
            raise OSError(number, os.strerror(number), path)
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunFailed) as end:
        run(config)
    assert struck
    assert (end.value.failure.code, end.value.failure.exit_code) == (FailureCode.STORAGE_FULL, 22)
    assert end.value.failure.args == {"uri": config.output_uri}
    monkeypatch.setattr(os, "fsync", sync)
    assert run(config).finished is False, "with room again, the job goes on and ends well"
