"""A run as lines of text: what is new is told, and nothing too often."""

from __future__ import annotations

import pytest

from finetune_api.estimate import Estimate, MemoryEstimate
from finetune_api.report import Report
from finetune_api.status import Metrics, Progress
from finetune_api.trainer import Stage
from finetune_trainer.out import console
from finetune_trainer.out.console import Console


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(console, "monotonic", lambda: now[0])
    return now


def told(capsys, shown, display, step=0, metrics=None):
    progress = Progress(display=display, step=step, total_steps=9)
    shown(Report(job_uid="uid", stage=Stage.TRAIN, progress=progress, metrics=metrics))
    return capsys.readouterr().out.splitlines()


MEMORY = MemoryEstimate(weights=3 << 30, gradients=0, optimizer=0, activations=0, temporaries=1 << 29)


@pytest.mark.parametrize(
    ("estimate", "line"),
    [
        (Estimate(train_tokens=900), "estimate: 900 tokens to train on"),
        (
            Estimate(train_tokens=900, train_petaflop=12.34, memory=MEMORY),
            "estimate: 900 tokens to train on, 12.3 PFLOP, 3.5 GiB of memory for tensors",
        ),
        (
            Estimate(train_tokens=9, price=0.5, gpu_memory_bytes=4 << 30, fast_gpu_memory_bytes=9 << 30, memory=MEMORY),
            "estimate: 9 tokens to train on, price 0.50, 4.0 GiB of GPU memory at the least, 9.0 GiB to be fast",
        ),
    ],
    ids=["tokens", "cpu", "gpu"],
)
def test_what_a_job_will_take_is_told_once(capsys, estimate, line):
    shown, report = Console(10.0), Report(job_uid="uid", stage=Stage.PREPARE, estimate=estimate)
    shown(report)
    shown(report)
    assert capsys.readouterr().out.splitlines() == [line]


def test_the_reference_shows_how_far_it_is_now_and_then(capsys, clock):
    shown = Console(10.0)
    assert told(capsys, shown, "reference 0/460") == ["reference 0/460"]
    clock[0] += 5
    assert told(capsys, shown, "reference 60/460") == []
    clock[0] += 6
    assert told(capsys, shown, "reference 120/460") == ["reference 120/460"]
    assert told(capsys, shown, "0/9") == [], "the first step is told when it is done"


def test_steps_are_told_now_and_then_and_the_last_one_always(capsys, clock):
    shown, metrics = Console(10.0), Metrics(train={"loss": 0.5})
    assert told(capsys, shown, "1/9", 1, metrics) == ["step 1/9  epoch 0.00  loss 0.5"]
    clock[0] += 5
    assert told(capsys, shown, "2/9", 2, metrics) == []
    assert told(capsys, shown, "9/9", 9, metrics) == ["step 9/9  epoch 0.00  loss 0.5"]
