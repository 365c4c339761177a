"""Whole runs that are tracked: every tracker holds what metrics.jsonl holds, and whatever becomes of it, they train."""

from __future__ import annotations

import os
import signal
import tempfile
from pathlib import Path
from threading import Event
from uuid import uuid4

import pytest

from finetune_api.failures import FailureCode
from finetune_api.trainer import Stage
from finetune_trainer.layout import Layout
from finetune_trainer.mirror import StoreMirror
from finetune_trainer.out import trackers
from finetune_trainer.out.metrics import MetricsLog
from finetune_trainer.out.progress import Reporter
from finetune_trainer.run.train import train
from held import (
    Series,
    children_of,
    followers,
    program_of,
    single,
    tensorboard_series,
    wandb_config,
    wandb_files,
    wandb_series,
    written_series,
)
from runs import attempt, prepared, run
from training import metrics_rows

BREAKS, MENDED = 8, 16


@pytest.fixture
def tracked(config, mlflow, monkeypatch):
    """The run of `config`, followed by all three, whose time at the end is what they need."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr(trackers, "FIRST_PAUSE", 0.2)
    for limit in ("END_SECONDS", "STOP_SECONDS"):
        monkeypatch.setattr(trackers, limit, 120.0)
    chosen = {
        "wandb": {"project": "tuning"},
        "tensorboard": True,
        "mlflow": {"trackingUri": mlflow.uri, "experiment": f"run {uuid4()}"},
    }
    tracking = type(config.tracking).model_validate(chosen)
    return config.model_copy(update={"tracking": tracking})


def held(config, mlflow) -> dict[str, Series]:
    """What each tracker holds of a run."""
    output = Layout.of(config).output
    (of_mlflow,) = mlflow.runs(config.tracking.mlflow.experiment)
    return {
        "W&B": wandb_series(wandb_files(output)[-1]),
        "TensorBoard": tensorboard_series(output / "tensorboard"),
        "MLflow": mlflow.series(of_mlflow),
    }


def expected(metrics: Path) -> dict[str, Series]:
    written = written_series(metrics)
    return {"W&B": written, "TensorBoard": single(written), "MLflow": written}


def without_clock(found: dict[str, Series]) -> dict[str, Series]:
    return {name: {key: p for key, p in s.items() if key != "train/tokens_per_second"} for name, s in found.items()}


def test_a_run_that_trains_steps_again_shows_each_of_them_once(tracked, mlflow, whole, monkeypatch):
    never = tracked.checkpointing.model_copy(update={"recovery_period_seconds": 86400})
    config = prepared(tracked.model_copy(update={"checkpointing": never}))
    real = MetricsLog.append

    def full(log, step, stage, values):
        if step == 20:
            raise OSError(28, "No space left on device")
        real(log, step, stage, values)

    with monkeypatch.context() as patch:
        patch.setattr(MetricsLog, "append", full)
        assert attempt(config, Event()) is FailureCode.STORAGE_FULL
    (of_mlflow,) = mlflow.runs(config.tracking.mlflow.experiment)
    assert of_mlflow["info"]["status"] == "KILLED"
    assert max(step for step, _ in mlflow.series(of_mlflow)["train/loss"]) == 19
    report = run(config)
    layout = Layout.of(config)
    assert metrics_rows(layout.metrics) == metrics_rows(whole / "metrics.jsonl")
    assert without_clock(held(config, mlflow)) == without_clock(expected(layout.metrics))
    (of_mlflow,) = mlflow.runs(config.tracking.mlflow.experiment)
    assert of_mlflow["info"]["status"] == "FINISHED"
    assert report.tracking.mlflow_url.endswith(of_mlflow["info"]["run_id"])
    assert report.tracking.tensorboard_uri == f"{layout.uri}/tensorboard"
    assert report.tracking.wandb_url is None, "an offline run has no page"
    assert "TrackerFailed" not in {warning.reason for warning in report.warnings}
    made_from = wandb_config(wandb_files(layout.output)[-1])
    assert made_from["trainingMethod"]["dpo"]["beta"] == 0.1
    params = {param["key"]: param["value"] for param in of_mlflow["data"]["params"]}
    assert len(params["data.sha256.trainingFile"]) == 64
    assert params["data.sha256.trainingFile"] == made_from["data"]["sha256"]["trainingFile"]


def test_trackers_that_are_killed_in_the_middle_cost_training_nothing(tracked, mlflow, whole, monkeypatch):
    reporter = Reporter(tracked.job, Stage.TRAIN, "pod-1")
    layout = Layout.of(tracked)
    folder = layout.output / "tensorboard"
    real, said = MetricsLog.append, []

    def warned(word: str) -> str:
        """What the status says of trackers, once it says `word` of each of the three."""
        while True:
            found = {warning.reason: warning.message for warning in reporter.report.warnings}
            if found.get("TrackerFailed", "").count(word) == 3:
                return found["TrackerFailed"]
            Event().wait(0.05)

    def append(log, step, stage, values):
        real(log, step, stage, values)
        if (step, stage) == (BREAKS, "train"):
            while not (wandb_files(layout.output) and reporter.report.tracking and folder.is_dir()):
                Event().wait(0.05)
            os.kill(service_process(), signal.SIGKILL)
            mlflow.kill()
            folder.rename(folder.with_name("aside"))
            folder.write_text("in the way")
        if (step, stage) == (MENDED, "train"):
            said.append(warned("Training goes on"))
            folder.unlink()
            mlflow.start()

    monkeypatch.setattr(MetricsLog, "append", append)
    train(prepared(tracked), reporter, Event())
    for cause in ("W&B has ended by itself", "MLflow cannot be reached at", "TensorBoard cannot write its files"):
        assert cause in said[0]
    assert warned("had failed, is back, and has been sent every value")
    assert held(tracked, mlflow) == expected(layout.metrics)
    assert metrics_rows(layout.metrics) == metrics_rows(whole / "metrics.jsonl")
    adapter = "adapter/adapter_model.safetensors"
    assert (layout.output / adapter).read_bytes() == (whole / adapter).read_bytes()


def service_process() -> int:
    """Of W&B's client."""
    found = (child for follower in followers() for child in children_of(follower))
    return next(child for child in found if "wandb-core" in program_of(child))


def test_files_of_trackers_lie_in_the_store_where_the_output_does(tracked, buckets, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    files = tracked.tracking.model_copy(update={"mlflow": None})
    config = tracked.model_copy(update={"output_uri": f"{buckets.new()}/team", "tracking": files})
    put = []
    real = StoreMirror.put_file
    monkeypatch.setattr(
        StoreMirror, "put_file", lambda self, path, name=None: (put.append(path), real(self, path, name))
    )
    report = run(prepared(config))
    assert put[-1].name == "manifest.json", "which says that all is there"
    left = buckets.below(report.tracking.tensorboard_uri.removesuffix("/tensorboard"))
    for name, content in left.items():
        path = tmp_path / "left" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    written = written_series(tmp_path / "left" / "metrics.jsonl")
    assert tensorboard_series(tmp_path / "left" / "tensorboard") == single(written)
    assert wandb_series(wandb_files(tmp_path / "left")[-1]) == written
