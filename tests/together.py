"""Several processes that train as one, forked from the test: each does the same work and returns what it found."""

from __future__ import annotations

import json
import os
import signal
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from apiserver import free_ports
from finetune_api.failures import FailureCode
from finetune_api.trainer import Stage, TrainerConfig
from finetune_trainer.failures import RunFailed
from finetune_trainer.layout import Layout
from finetune_trainer.out.progress import Reporter
from finetune_trainer.run.train import train
from finetune_trainer.step.ranks import PeerLost, Ranks, meeting
from training import metrics_rows

DEADLINE_SECONDS = 120.0
PEER_LOST = "PeerLost"


def together(size: int, work: Callable[[Ranks], Any], *, dies: int | None = None) -> list[Any]:
    """What `work`, as JSON can hold it, returns on each of `size` processes; PEER_LOST where it lost another.

    Args:
        dies: a process that is not expected to return.
    """
    with tempfile.TemporaryDirectory() as folder:
        (port,) = free_ports(1)
        children = [_child(rank, size, port, work, Path(folder)) for rank in range(size)]
        _wait(children)
        found = {rank: Path(folder) / str(rank) for rank in range(size) if rank != dies}
        missing = [rank for rank, file in found.items() if not file.exists()]
        assert not missing, f"processes {missing} did not return"
        return [json.loads(file.read_text()) for file in found.values()]


def _child(rank: int, size: int, port: int, work: Callable[[Ranks], Any], folder: Path) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        where = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in where.items()})
        torch.set_num_threads(1)
        (folder / f".{rank}").write_text(json.dumps(_result(work)))
        (folder / f".{rank}").replace(folder / str(rank))
        code = 0
    finally:
        if code:
            traceback.print_exc()
        os._exit(code)


def _result(work: Callable[[Ranks], Any]) -> Any:
    try:
        with meeting() as ranks:
            return work(ranks)
    except PeerLost:
        return PEER_LOST


def _wait(children: list[int]) -> None:
    """Until all have ended; those that have not in time are killed, and a process that waits for ever is told."""
    deadline, left = time.monotonic() + DEADLINE_SECONDS, set(children)
    while left and time.monotonic() < deadline:
        left = {child for child in left if os.waitpid(child, os.WNOHANG) == (0, 0)}
        time.sleep(0.01)
    for child in left:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert not left, f"{len(left)} of {len(children)} processes did not end in {DEADLINE_SECONDS:g} s"


def outcome(config: TrainerConfig) -> dict[str, Any]:
    """What a run left: its metrics, and its weights by step."""
    out = Layout.of(config)
    weights = {path.parent.name: load_file(path) for path in sorted(out.checkpoints.glob("*/*.safetensors"))}
    return {"metrics": metrics_rows(out.metrics), "weights": weights}


def train_together(
    config: TrainerConfig, size: int, stopping: Callable[[Ranks], Event] | None = None
) -> list[int | FailureCode]:
    """The step that each of `size` processes went on from, or why it ended early."""

    def work(ranks):
        reporter = Reporter(config.job, Stage.TRAIN, "pod-1")
        try:
            train(config, reporter, stopping(ranks) if stopping else Event(), ranks)
        except RunFailed as end:
            return end.failure.code
        return reporter.report.resumed_from_step

    return together(size, work)


def assert_alike(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Two outcomes are the same but for rounding."""
    assert len(found["metrics"]) == len(expected["metrics"])
    for one, other in zip(found["metrics"], expected["metrics"], strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            assert value == pytest.approx(other[name], rel=1e-5, abs=1e-6), name
    assert found["weights"].keys() == expected["weights"].keys() != set()
    for folder, weights in expected["weights"].items():
        for name, tensor in weights.items():
            torch.testing.assert_close(found["weights"][folder][name], tensor, rtol=0, atol=1e-5)
