"""W&B's real client: what an offline run's file holds, and what becomes of a client that cannot begin.

Each runs in a process of its own, as it does beside a training.
"""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from threading import Event
from types import SimpleNamespace

import pytest

from finetune_api.status import TrackingStatus
from finetune_api.tracking import Tracker, Tracking
from finetune_api.trainer import JobIdentity
from finetune_trainer.out import trackers
from finetune_trainer.out.lines import Row
from finetune_trainer.out.metrics import MetricsLog
from finetune_trainer.out.trackers import Trackers
from finetune_trainer.out.tracking import Task
from held import children_of, followers, program_of, wandb_config, wandb_files, wandb_series, written_series

FACTS = {"trainingMethod": {"type": "DPO", "dpo": {"beta": 0.1}}}
KEY = "x" * 39
SECONDS = 60.0


def task(folder: Path, **wanted: object) -> Task:
    return Task(
        tracker=Tracker.WANDB,
        job=JobIdentity(namespace="ml", name="dpo", uid="6f1c2b3a"),
        tracking=Tracking.model_validate({"wandb": wanted}),
        metrics=str(folder / "metrics.jsonl"),
        output=str(folder),
        output_uri="pvc://claim/out",
        facts=FACTS,
    )


@pytest.fixture
def followed(tmp_path, monkeypatch):
    """The home of a pod: empty, and no variable of the client's but those of the test."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(trackers, "FIRST_PAUSE", 0.05)
    monkeypatch.setattr(trackers, "END_SECONDS", SECONDS)
    return tmp_path


class Heard:
    """What is told of a tracker; `failed` is set by the first warning."""

    def __init__(self) -> None:
        self.status: list[TrackingStatus] = []
        self.warnings: list[str] = []
        self.failed = Event()

    def warn(self, sentence: str) -> None:
        self.warnings.append(sentence)
        self.failed.set()


def test_an_offline_run_at_the_output_holds_every_value_and_the_configuration(followed, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    heard = Heard()
    mine = task(followed, project="tuning", name="a run", entity="team")
    with MetricsLog(followed / "metrics.jsonl", 0) as log, Trackers([mine], heard.status.append, heard.warn):
        log.append(0, "eval", {"loss": 0.7})
        for step in range(1, 400):
            log.append(step, "train", {"loss": 1 / step, "kl": -0.5, "kl/chosen": 1e-300})
            if step % 50 == 0:
                log.append(step, "eval", {"loss": 2 / step})
    (file,) = wandb_files(followed)
    assert wandb_series(file) == written_series(followed / "metrics.jsonl")
    config = wandb_config(file)
    assert {name: config[name] for name in FACTS} == FACTS
    assert "run-ft-6f1c2b3a" in file.name
    assert (heard.status, heard.warnings) == ([], [])
    others = {path.name for path in file.parent.rglob("*") if path.is_file()}
    assert not others & {"requirements.txt", "wandb-metadata.json", "diff.patch"}, "nothing but what was asked for"
    assert not list((followed / "home").rglob("*.wandb"))


def test_a_killed_service_process_costs_no_value(followed, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    heard = Heard()
    with MetricsLog(followed / "metrics.jsonl", 0) as log, Trackers([task(followed)], heard.status.append, heard.warn):
        log.append(1, "train", {"loss": 1.0})
        while not wandb_files(followed):
            heard.failed.wait(0.05)
        os.kill(service_process(), signal.SIGKILL)
        for step in range(2, 400):
            log.append(step, "train", {"loss": 1 / step})
            if heard.failed.wait(0.1):
                break
    assert heard.warnings[0].startswith("W&B has ended by itself (ConnectionResetError")
    assert heard.warnings[-1] == "W&B had failed, is back, and has been sent every value"
    assert wandb_series(wandb_files(followed)[-1]) == written_series(followed / "metrics.jsonl")


def service_process() -> int:
    """The client's own, once it is there."""
    while True:
        for follower in followers():
            for child in children_of(follower):
                if "wandb-core" in program_of(child):
                    return child


def test_without_a_key_a_person_reads_which_field_to_set(followed):
    assert only_warning(followed) == (
        "W&B has no API key: set tracking.wandb.apiKeySecretRef, or have the runtime's podTemplate set WANDB_API_KEY,"
        " or WANDB_MODE to offline. Training goes on; metrics.jsonl holds every value"
    )


def test_a_key_that_is_none_is_refused_and_not_quoted(followed, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    said = only_warning(followed)
    assert said.startswith("W&B refuses the credentials for https://api.wandb.ai (")
    assert KEY not in said


def only_warning(folder: Path) -> str:
    """What is said of a tracker that fails alike again and again."""
    heard = Heard()
    with MetricsLog(folder / "metrics.jsonl", 0) as log, Trackers([task(folder)], heard.status.append, heard.warn):
        log.append(1, "train", {"loss": 1.0})
        assert heard.failed.wait(SECONDS)
    (said,) = heard.warnings
    assert json.dumps(said)
    return said


def test_rows_that_the_server_holds_are_not_sent_again(tmp_path, monkeypatch):
    """No server of W&B's runs here: its client's word for what it holds is put into its mouth."""
    from finetune_trainer.out import wandb

    sent, asked = [], {}
    known = SimpleNamespace(
        offline=False,
        url="https://wandb.ai/team/tuning/runs/ft-6f1c2b3a",
        starting_step=3,
        log=lambda values, step: sent.append((step, values)),
    )
    monkeypatch.setattr(wandb.wandb, "init", lambda **given: asked.update(given) or known)
    run = wandb.WandbRun(task(tmp_path, project="tuning"), {})
    run.send([Row(step, {"train/loss": 1 / step}) for step in range(1, 5)])
    assert sent == [(3, {"train/loss": 1 / 3}), (4, {"train/loss": 0.25})]
    assert run.url == known.url
    assert (asked["id"], asked["resume"], asked["name"], asked["entity"]) == ("ft-6f1c2b3a", "allow", "dpo", None)
    assert asked["settings"].base_url == "https://api.wandb.ai"
    assert not asked["settings"].root_dir.startswith(str(tmp_path)), "only an offline run is kept"
