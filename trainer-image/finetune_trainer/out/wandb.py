"""Weights & Biases by its own client, which speaks a protocol that is not public.

The run's id is the job's, so that a process that goes on continues the run. The client tells which step the server
holds; rows before it are not sent again. What the client would log of its own accord, system metrics, code, packages
and machine, stays off.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import wandb
from wandb.errors import AuthenticationError, CommError, UsageError

from finetune_api.names import job_id
from finetune_api.tracking import TrackerProblem
from finetune_trainer.out.lines import Row
from finetune_trainer.out.tracking import Task, TrackerFailed

MODE = "WANDB_MODE"
INIT_SECONDS = 40.0
MISSING_KEY = "No API key"


class WandbRun:
    """A run on W&B; with WANDB_MODE=offline, one in files at the output, which `wandb sync` uploads."""

    def __init__(self, task: Task, environment: Mapping[str, str]) -> None:
        """Begin the job's run, or go on with it.

        Args:
            environment: what the platform sets of the client.

        Raises:
            TrackerFailed
        """
        wanted = task.tracking.wandb
        assert wanted is not None
        offline = environment.get(MODE) == "offline"
        folder = Path(task.output) if offline else Path(tempfile.mkdtemp(prefix="wandb-"))
        try:
            self._run = wandb.init(
                project=wanted.project,
                entity=wanted.entity,
                name=wanted.name or task.job.name,
                id=job_id(task.job.uid),
                resume=None if offline else "allow",
                config=task.facts,
                settings=_settings(wanted.base_url, folder),
            )
        except wandb.Error as error:
            raise TrackerFailed(_problem(error), error) from error
        except ConnectionError as error:
            raise _ended(error) from error
        except OSError as error:
            raise TrackerFailed(TrackerProblem.NOT_WRITABLE, error.strerror or error) from error
        self.url = None if self._run.offline else self._run.url
        self._first = self._run.starting_step

    def send(self, rows: Sequence[Row]) -> None:
        """Log the rows from the first step on that the server does not hold."""
        try:
            for row in rows:
                if row.step >= self._first:
                    self._run.log(row.values, step=row.step)
        except (wandb.Error, OSError) as error:
            raise _ended(error) from error

    def close(self, finished: bool) -> None:
        """Wait until everything is uploaded; a run that has not ended well counts as failed until it goes on."""
        try:
            self._run.finish(exit_code=0 if finished else 1)
        except (wandb.Error, OSError) as error:
            raise _ended(error) from error


def _settings(base_url: str, folder: Path) -> wandb.Settings:
    return wandb.Settings(
        base_url=base_url,
        root_dir=str(folder),
        init_timeout=INIT_SECONDS,
        silent=True,
        console="off",
        disable_code=True,
        disable_git=True,
        save_code=False,
        x_disable_stats=True,
        x_disable_meta=True,
        x_disable_machine_info=True,
        x_save_requirements=False,
    )


def _problem(error: wandb.Error) -> TrackerProblem:
    if isinstance(error, AuthenticationError):
        return TrackerProblem.REFUSED
    if isinstance(error, UsageError):
        return TrackerProblem.NO_KEY if MISSING_KEY in str(error) else TrackerProblem.REJECTED
    return TrackerProblem.UNREACHABLE if isinstance(error, CommError) else TrackerProblem.ENDED


def _ended(error: Exception) -> TrackerFailed:
    """The client's own service process is gone."""
    return TrackerFailed(TrackerProblem.ENDED, f"{type(error).__name__}: {error}")
