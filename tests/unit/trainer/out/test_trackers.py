"""Whatever becomes of a tracker's process, whoever writes metrics.jsonl goes on, and hears of it once."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from threading import Event
from time import monotonic

import pytest

from finetune_api.status import TrackingStatus
from finetune_api.tracking import Tracker, Tracking
from finetune_api.trainer import JobIdentity
from finetune_trainer.out import trackers
from finetune_trainer.out.metrics import MetricsLog
from finetune_trainer.out.trackers import Trackers
from finetune_trainer.out.tracking import Task
from held import FOLLOWER, followers, program_of, single, tensorboard_series, written_series

SECONDS = 60.0
NOTHING = (sys.executable, "-c", f"import time; time.sleep(600)  # {FOLLOWER}")
GOES_ON = ". Training goes on; metrics.jsonl holds every value"


class Listener:
    """Hears what is told, and waits for some of it."""

    def __init__(self) -> None:
        self.status: list[TrackingStatus] = []
        self.warnings: list[str] = []
        self._news = Event()

    def told(self, status: TrackingStatus) -> None:
        self.status.append(status)
        self._news.set()

    def warn(self, sentence: str) -> None:
        self.warnings.append(sentence)
        self._news.set()

    def until(self, there: Callable[[], object]) -> None:
        deadline = monotonic() + SECONDS
        while not there():
            assert monotonic() < deadline, (self.status, self.warnings)
            self._news.wait(0.05)
            self._news.clear()


@pytest.fixture
def listener(monkeypatch) -> Listener:
    monkeypatch.setattr(trackers, "FIRST_PAUSE", 0.05)
    monkeypatch.setattr(trackers, "END_SECONDS", SECONDS)
    return Listener()


def task(folder: Path, tracker: Tracker = Tracker.TENSORBOARD) -> Task:
    return Task(
        tracker=tracker,
        job=JobIdentity(namespace="ml", name="dpo", uid="1"),
        tracking=Tracking.model_validate({"tensorboard": True, "mlflow": {"trackingUri": "http://127.0.0.1:9"}}),
        metrics=str(folder / "metrics.jsonl"),
        output=str(folder),
        output_uri="pvc://claim/out",
    )


def complete(folder: Path) -> bool:
    return tensorboard_series(folder / "tensorboard") == single(written_series(folder / "metrics.jsonl"))


def the_process() -> int:
    (found,) = followers()
    return found


def test_rows_from_before_and_after_the_start_arrive_and_the_place_is_told(tmp_path, listener):
    with MetricsLog(tmp_path / "metrics.jsonl", 0) as log:
        log.append(1, "train", {"loss": 1.0})
        with Trackers([task(tmp_path)], listener.told, listener.warn):
            listener.until(lambda: listener.status)
            for step in range(2, 1000):
                log.append(step, "train", {"loss": 1 / step})
    assert listener.status == [TrackingStatus(tensorboard_uri="pvc://claim/out/tensorboard")]
    assert listener.warnings == []
    assert complete(tmp_path)
    assert followers() == []


def test_a_killed_process_is_started_anew_and_catches_up(tmp_path, listener):
    with (
        MetricsLog(tmp_path / "metrics.jsonl", 0) as log,
        Trackers([task(tmp_path)], listener.told, listener.warn),
    ):
        log.append(1, "train", {"loss": 1.0})
        listener.until(lambda: listener.status)
        os.kill(the_process(), signal.SIGKILL)
        log.append(2, "train", {"loss": 0.5})
        listener.until(lambda: len(listener.warnings) == 2)
        log.append(3, "train", {"loss": 0.4})
    assert listener.warnings == [
        f"TensorBoard has ended by itself (signal 9) and is started anew: see the pod's log{GOES_ON}",
        "TensorBoard had failed, is back, and has been sent every value",
    ]
    assert complete(tmp_path)


def test_a_folder_that_cannot_be_written_is_told_and_filled_once_it_can(tmp_path, listener):
    in_the_way = tmp_path / "tensorboard"
    in_the_way.write_text("")
    with (
        MetricsLog(tmp_path / "metrics.jsonl", 0) as log,
        Trackers([task(tmp_path)], listener.told, listener.warn),
    ):
        log.append(1, "train", {"loss": 1.0})
        listener.until(lambda: listener.warnings)
        in_the_way.unlink()
        listener.until(lambda: len(listener.warnings) == 2)
    assert listener.warnings[0] == (
        f"TensorBoard cannot write its files (File exists): check the volume of the output{GOES_ON}"
    )
    assert complete(tmp_path)


def test_a_process_that_says_nothing_is_ended_and_started_anew(tmp_path, listener, monkeypatch):
    monkeypatch.setattr(trackers, "SILENT_SECONDS", 0.2)
    monkeypatch.setattr(trackers, "STOP_SECONDS", 0.0)
    monkeypatch.setattr(trackers, "COMMAND", NOTHING)
    with Trackers([task(tmp_path)], listener.told, listener.warn):
        listener.until(lambda: listener.warnings)
        monkeypatch.undo()
        (tmp_path / "metrics.jsonl").write_text('{"step": 1, "train/loss": 1.0}\n')
        listener.until(lambda: len(listener.warnings) == 2)
    assert listener.warnings[0].startswith("TensorBoard has given no sign of life for 0.2 s and is started anew")
    assert complete(tmp_path)


@pytest.mark.parametrize(("error", "limit"), [(None, "END_SECONDS"), (ValueError(), "STOP_SECONDS")])
def test_the_end_waits_for_nobody_longer_than_its_time(tmp_path, listener, monkeypatch, error, limit):
    monkeypatch.setattr(trackers, "STOP_SECONDS", SECONDS)
    monkeypatch.setattr(trackers, limit, 0.1)
    monkeypatch.setattr(trackers, "COMMAND", NOTHING)
    following = Trackers([task(tmp_path)], listener.told, listener.warn)
    following.__enter__()
    began = monotonic()
    following.__exit__(type(error) if error else None, error, None)
    assert monotonic() - began < SECONDS / 4
    (said,) = listener.warnings
    assert said.startswith("TensorBoard had not taken every value 0.1 s after the end of training: see metrics.jsonl")
    assert followers() == []


def test_the_cause_of_a_failure_outlives_the_end(tmp_path, listener, monkeypatch):
    (tmp_path / "tensorboard").write_text("")
    (tmp_path / "metrics.jsonl").write_text("")
    monkeypatch.setattr(trackers, "END_SECONDS", 0.1)
    with Trackers([task(tmp_path)], listener.told, listener.warn):
        listener.until(lambda: listener.warnings)
        monkeypatch.setattr(trackers, "COMMAND", NOTHING)
        listener.until(lambda: NOTHING[-1] in "".join(map(program_of, followers())))
    assert len(listener.warnings) == 1
    assert listener.warnings[0].startswith("TensorBoard cannot write its files")


def test_of_two_that_fail_one_warning_tells(tmp_path, listener):
    (tmp_path / "tensorboard").write_text("")
    (tmp_path / "metrics.jsonl").write_text("")
    with Trackers([task(tmp_path), task(tmp_path, Tracker.MLFLOW)], listener.told, listener.warn):
        listener.until(lambda: len(listener.warnings) == 2)
    first, second = sorted(listener.warnings[-1].split(f"{GOES_ON}. "))
    assert first.startswith("MLflow cannot be reached at http://127.0.0.1:9 (ConnectError)")
    assert second.startswith("TensorBoard cannot write")


def test_an_address_that_is_none_is_not_told(tmp_path, listener):
    """The operator would not believe a word of a report with such an address in it."""
    followed = Trackers([], listener.told, listener.warn)
    followed._opened(task(tmp_path, Tracker.MLFLOW), "https://host/#/experiments/a b/runs/1")
    followed._opened(task(tmp_path, Tracker.WANDB), "https://wandb.example/run")
    assert [status.to_json() for status in listener.status] == [{"wandbUrl": "https://wandb.example/run"}]
