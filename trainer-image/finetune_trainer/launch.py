"""Several processes of one pod: torchrun's agent starts them and ends them together; what went wrong is said by code.

The agent alone ends with 1 whatever happened. So each process leaves its exit code in a file, and the pod ends with
that of the process whose end was the cause: not with that of one that only lost another.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from finetune_api.names import MEETING_SECONDS, RENDEZVOUS_PORT
from finetune_api.trainer import ExitCode, TrainerConfig
from finetune_trainer.failures import RunFailed
from finetune_trainer.layout import Layout, concluded

RESULTS_ENV = "FINETUNE_RESULTS"
"""Folder in which the processes of a pod leave their exit codes."""
KILLED = 128
"""Added to the number of the signal that ended a process, as a shell does it."""
SHUTDOWN_SECONDS = 3600
"""How long processes may take to save their state: the pod's own grace period ends them sooner."""


def has_to_be_launched(config: TrainerConfig) -> bool:
    """Whether several processes are to train as one, and this is none of them.

    What is finished is told by one alone: the others of it may have ended long ago.
    """
    several = config.nodes * max(1, config.gpus) > 1
    return several and "WORLD_SIZE" not in os.environ and not _is_finished(config)


def _is_finished(config: TrainerConfig) -> bool:
    try:
        return concluded(Layout.of(config), config.job) is not None
    except RunFailed:
        return False  # each process will meet that


def is_first() -> bool:
    """Whether this process writes and tells, for all that train with it."""
    return os.environ.get("RANK", "0") == "0"


def speaks_for_its_pod() -> bool:
    """Whether this process leaves the termination message of its pod."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def launch(config: TrainerConfig, path: Path) -> int:
    """Run `finetune-train train PATH` in each process of this pod; returns the pod's exit code."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    environment = os.environ
    alone = config.nodes == 1
    where = f"{environment.get('PET_MASTER_ADDR', 'localhost')}:{environment.get('PET_MASTER_PORT', RENDEZVOUS_PORT)}"
    node = {"rank": int(environment.get("PET_NODE_RANK", "0")), "timeout": MEETING_SECONDS}
    agent = LaunchConfig(
        min_nodes=config.nodes,
        max_nodes=config.nodes,
        nproc_per_node=max(1, config.gpus),
        run_id=config.job.uid,
        rdzv_backend="c10d" if alone else "static",
        rdzv_endpoint="localhost:0" if alone else where,
        rdzv_configs={} if alone else node,
        max_restarts=0,
        shutdown_timeout=SHUTDOWN_SECONDS,
    )
    with tempfile.TemporaryDirectory() as folder:
        environment[RESULTS_ENV] = folder
        killed: dict[int, int] = {}
        try:
            elastic_launch(agent, sys.executable)("-m", "finetune_trainer", "train", str(path))
        except ChildFailedError as error:
            killed = {rank: KILLED - end.exitcode for rank, end in error.failures.items() if end.exitcode < 0}
        except SignalException:
            print("asked to end; the processes have ended", file=sys.stderr)
        finally:
            del environment[RESULTS_ENV]
        return _cause(Path(folder), killed)


def leave(code: int) -> int:
    """Note how this process ends, where an agent has started it; returns `code`."""
    if (folder := os.environ.get(RESULTS_ENV)) is not None:
        with suppress(OSError):  # the agent has gone, and with it who would read that
            (Path(folder) / os.environ["LOCAL_RANK"]).write_text(str(int(code)))
    return code


def _cause(folder: Path, killed: Mapping[int, int]) -> int:
    """The exit code of the process that ended first and not because another did."""
    files = sorted(folder.iterdir(), key=lambda file: file.stat().st_mtime_ns)
    codes = [*killed.values(), *(int(file.read_text()) for file in files)]
    failures = [code for code in codes if code != ExitCode.DONE]
    causes = [code for code in failures if code != ExitCode.PEER_LOST]
    return next(iter(causes or failures), ExitCode.DONE if codes else KILLED)
