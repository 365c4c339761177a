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
from typing import Any

import torch

from apiserver import free_ports
from finetune_trainer.step.ranks import PeerLost, Ranks, meeting

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
