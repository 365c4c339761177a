"""Two pods' worth of processes on this machine: they meet, end together, and each pod says why by its exit code."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import IO
from urllib.request import Request, urlopen

import pytest

from apiserver import free_ports
from finetune_api import names
from finetune_trainer import launch
from finetune_trainer.layout import Layout, claimed
from runs import prepared
from training import metrics_rows, preference_rows, trainer_config, write_jsonl

PATIENCE_SECONDS = 180


class Pods:
    """The launchers of a training, one for each node, each with a session of its own."""

    def __init__(self, config: Path, nodes: int = 2, said: IO[str] | None = None) -> None:
        job = json.loads(config.read_text())["job"]["uid"]
        heard = {names.PROGRESS_HEADER: job, names.RECORDED_HEADER: "pod-7"}
        self.recorded = Request(f"http://127.0.0.1:{names.PROGRESS_PORT}{names.PROGRESS_PATH}", headers=heard)
        (port,) = free_ports(1)
        where = {"PET_MASTER_ADDR": "127.0.0.1", "PET_MASTER_PORT": str(port), names.POD_UID_ENV: "pod-7"}
        command = [sys.executable, "-m", "finetune_trainer", "train", str(config)]
        self.nodes = [
            subprocess.Popen(
                command, env={**os.environ, **where, "PET_NODE_RANK": str(node)}, start_new_session=True, stderr=said
            )
            for node in range(nodes)
        ]

    def __enter__(self) -> Pods:
        return self

    def __exit__(self, *_: object) -> None:
        """Whatever a test has found, nothing of them is left."""
        for node in self.nodes:
            with suppress(ProcessLookupError):
                os.killpg(node.pid, signal.SIGKILL)

    def ends(self) -> list[int]:
        """Their exit codes; the operator is there, and says that it has recorded what they tell."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while any(node.poll() is None for node in self.nodes):
            assert time.monotonic() < deadline, "they do not end"
            with suppress(OSError), urlopen(self.recorded, timeout=1):
                pass
            time.sleep(0.2)
        return [node.returncode for node in self.nodes]

    def worker(self, node: int) -> int:
        """The training process of a node."""
        (child,) = Path(f"/proc/{self.nodes[node].pid}/task/{self.nodes[node].pid}/children").read_text().split()
        return int(child)


def wait_for_steps(log: Path, steps: int) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not log.exists() or len(metrics_rows(log)) < steps:
        assert time.monotonic() < deadline, "no steps"
        time.sleep(0.1)


def test_two_pods_train_as_one_stop_as_one_and_say_who_ended_it(tiny_model, tmp_path):
    write_jsonl(tmp_path / "train.jsonl", preference_rows(10))
    fields = {"nodes": 2, "hyperparameters": {"nEpochs": 20, "learningRate": 1e-3, "seed": 7}}
    config = prepared(trainer_config(tiny_model, tmp_path, **fields))
    path, layout = tmp_path / "config.json", Layout.of(config)
    path.write_text(json.dumps(config.to_json()))

    with Pods(path) as pods:
        wait_for_steps(layout.metrics, 3)
        os.kill(pods.worker(1), signal.SIGKILL)
        assert pods.ends() == [4, 137], "the one that was killed, and the one that lost it"

    with Pods(path) as pods:
        wait_for_steps(layout.metrics, len(metrics_rows(layout.metrics)) + 3)
        pods.nodes[1].send_signal(signal.SIGTERM)
        assert pods.ends() == [3, 3]
    stopped = len(metrics_rows(layout.metrics))

    path.write_text(json.dumps({**config.to_json(), "evaluation": {}}))
    with Pods(path) as pods:
        assert pods.ends() == [0, 0]
    assert len(metrics_rows(layout.metrics)) == 60 > stopped
    assert claimed(layout, config.job).last is not None


def test_the_processes_of_a_pod_share_its_threads_and_end_with_one_cause(tiny_model, tmp_path):
    """Two GPUs are asked for, and none is there."""
    write_jsonl(tmp_path / "train.jsonl", preference_rows(4))
    config = prepared(trainer_config(tiny_model, tmp_path, gpus=2))
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config.to_json()))
    said = tmp_path / "said"
    with said.open("w") as file, Pods(path, nodes=1, said=file) as pods:
        assert pods.ends() == [10]
    assert said.read_text().count("gpusPerNode is 2 but the pod sees 0 GPUs that do bf16") == 2


@pytest.mark.parametrize(("threads", "each"), [("8", "2"), ("2", "1"), (None, "1")])
def test_a_pods_threads_are_divided_among_its_processes(tiny_model, tmp_path, monkeypatch, threads, each):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if threads:
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
    write_jsonl(tmp_path / "train.jsonl", preference_rows(4))
    agent = launch._agent(trainer_config(tiny_model, tmp_path, gpus=4), tmp_path / "config.json")
    assert os.environ["OMP_NUM_THREADS"] == each
    assert agent._worker_group.spec.local_world_size == 4
    agent._worker_group.spec.rdzv_handler.shutdown()


@pytest.mark.parametrize(
    ("codes", "killed", "cause"),
    [
        ([0, 0], {}, 0),
        ([4, 15], {}, 15),
        ([4, 4], {}, 4),
        ([4], {1: 137}, 137),
        ([10], {1: 143, 2: 143}, 10),
        ([4], {1: 143}, 4),
        ([15], {0: 137}, 15),
        ([3, 3], {}, 3),
        ([], {}, 128),
    ],
)
def test_the_pods_exit_code_is_that_of_the_cause(tmp_path, codes, killed, cause):
    for rank, code in enumerate(codes):
        (tmp_path / str(rank)).write_text(str(code))
    assert launch._cause(tmp_path, killed) == cause


def test_processes_have_minutes_to_save_when_another_of_their_pod_has_ended(tiny_model, tmp_path, monkeypatch):
    """torchrun gives them half a minute, and the pod would end with 137 for the cause."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    write_jsonl(tmp_path / "train.jsonl", preference_rows(4))
    agent = launch._agent(trainer_config(tiny_model, tmp_path, gpus=2), tmp_path / "config.json")
    given = []
    monkeypatch.setattr(agent, "_shutdown", lambda *_, timeout: given.append(timeout))
    agent._stop_workers(agent._worker_group)
    assert given == [launch.LEAVING_SECONDS]
    assert launch.LEAVING_SECONDS >= 300
    agent._worker_group.spec.rdzv_handler.shutdown()
