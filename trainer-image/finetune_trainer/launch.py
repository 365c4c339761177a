"""Several processes of one pod: torchrun's agent starts them and ends them together; what went wrong is said by code.

The agent alone ends with 1 whatever happened. So each process leaves its exit code in a file, and the pod ends with
that of the process whose end was the cause: not with that of one that only lost another.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from finetune_api.names import MEETING_SECONDS, RENDEZVOUS_PORT
from finetune_api.trainer import ExitCode, TrainerConfig
from finetune_trainer.failures import RunFailed
from finetune_trainer.layout import Layout, concluded

if TYPE_CHECKING:
    from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent

RESULTS_ENV = "FINETUNE_RESULTS"
"""Folder in which the processes of a pod leave their exit codes."""
THREADS_ENV = "OMP_NUM_THREADS"
KILLED = 128
"""Added to the number of the signal that ended a process, as a shell does it."""
CONSEQUENCES = frozenset({ExitCode.PEER_LOST, KILLED + signal.SIGTERM})
"""How a process ends because another has: it notices itself, or the agent ends it before it hears signals."""
PARTING_SECONDS = 5
"""How long a pod whose processes have ended well waits for the others: they have nothing left to ask of it."""
LEAVING_SECONDS = 600
"""How long the processes of a pod may take to end once one of them has; torchrun kills them after 30."""
BARRIER_LOGGER = "torch.distributed.elastic.agent.server.api"
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

    with tempfile.TemporaryDirectory() as folder:
        os.environ[RESULTS_ENV] = folder
        killed: dict[int, int] = {}
        try:
            ends = _agent(config, path).run().failures
            killed = {rank: KILLED - end.exitcode for rank, end in ends.items() if end.exitcode < 0}
        except SignalException:
            print("asked to end; the processes have ended", file=sys.stderr)
        finally:
            del os.environ[RESULTS_ENV]
        return _cause(Path(folder), killed)


def _agent(config: TrainerConfig, path: Path) -> LocalElasticAgent:
    """What starts and watches the processes of this pod."""
    from torch.distributed.elastic.agent.server.api import WorkerGroup, WorkerSpec
    from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.rendezvous import RendezvousParameters
    from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

    environment, alone, size = os.environ, config.nodes == 1, max(1, config.gpus)
    threads = int(environment.get(THREADS_ENV, "1"))
    environment[THREADS_ENV] = str(max(1, threads // size))  # those of the pod, divided among its processes
    host = environment.get("PET_MASTER_ADDR", "localhost")
    port = int(environment.get("PET_MASTER_PORT", RENDEZVOUS_PORT))
    node = {"rank": int(environment.get("PET_NODE_RANK", "0")), "timeout": MEETING_SECONDS}
    meeting = RendezvousParameters(
        backend="c10d" if alone else "static",
        endpoint="localhost:0" if alone else f"{host}:{port}",
        run_id=config.job.uid,
        min_nodes=config.nodes,
        max_nodes=config.nodes,
        **({} if alone else node),  # type: ignore[arg-type]  # it takes any option of the backend
    )
    processes = WorkerSpec(
        role="trainer",
        local_world_size=size,
        entrypoint=sys.executable,
        args=("-m", "finetune_trainer", "train", str(path)),
        rdzv_handler=get_rendezvous_handler(meeting),
        max_restarts=0,
        master_addr=None if alone else host,
        master_port=None if alone else port,
    )
    # That the others have not come yet is no error of this pod, and no traceback for people to worry about.
    logging.getLogger(BARRIER_LOGGER).addFilter(lambda record: "exit barrier" not in record.getMessage())

    class Agent(LocalElasticAgent):
        """Gives the processes time when one of them has ended, too: the first may be saving what the end is about."""

        def _stop_workers(self, worker_group: WorkerGroup) -> None:
            self._shutdown(timeout=LEAVING_SECONDS)

    return Agent(processes, DefaultLogsSpecs(), exit_barrier_timeout=PARTING_SECONDS, shutdown_timeout=SHUTDOWN_SECONDS)


def leave(code: int) -> int:
    """Note how this process ends, where an agent has started it; returns `code`."""
    if (folder := os.environ.get(RESULTS_ENV)) is not None:
        with suppress(OSError):  # the agent has gone, and with it who would read that
            (Path(folder) / os.environ["LOCAL_RANK"]).write_text(str(int(code)))
    return code


def _cause(folder: Path, killed: Mapping[int, int]) -> int:
    """The exit code of the process that ended first and not because another did."""
    files = sorted(folder.iterdir(), key=lambda file: file.stat().st_mtime_ns)
    codes = [*(int(file.read_text()) for file in files), *killed.values()]
    failures = [code for code in codes if code != ExitCode.DONE]
    causes = [code for code in failures if code not in CONSEQUENCES]
    return next(iter(causes or failures), ExitCode.DONE if codes else KILLED)
