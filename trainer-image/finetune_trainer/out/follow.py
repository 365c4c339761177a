"""The process of one tracker: it follows metrics.jsonl and hands every row on.

The file is the queue. So nothing is lost while a tracker is away, and whoever is started anew, after whatever end,
begins at the file's first row and sends what the tracker does not hold yet. The trainer writes the file and never
waits; what a tracker's client does to its own process does nothing to training.
"""

from __future__ import annotations

import os
import select
import signal
import sys
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path

from finetune_api.tracking import Tracker
from finetune_trainer.out.lines import complete_rows
from finetune_trainer.out.tracking import FINISHED, Said, Task, TrackedRun, TrackerFailed

PERIOD_SECONDS = 0.5
"""How often the file is looked at."""
BATCH_ROWS = 50
"""Rows between two signs of life; fewer values than one call takes."""
LAST_SECONDS = 60
"""How long a process that nobody listens to any more may take to end."""
SWITCHES = {"WANDB_ERROR_REPORTING": "false", "DO_NOT_TRACK": "1"}
"""What a client would tell its makers about us, switched off."""


def main() -> None:
    """Read the task from the first line of standard input, and follow until the input ends."""
    words = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a client prints is no word of ours
    os.environ.update(SWITCHES)
    task = Task.model_validate_json(sys.stdin.readline())
    code = _followed(task, lambda said: print(said.model_dump_json(exclude_none=True), file=words))
    words.flush()
    os._exit(code)  # a client's own ending may wait for a server that does not answer


def _followed(task: Task, say: Callable[[Said], None]) -> int:
    try:
        run = open_run(task, os.environ)
        say(Said(url=run.url))
        follow(Path(task.metrics), run, _heard, say)
    except TrackerFailed as end:
        say(Said(problem=end.problem, detail=end.detail))
        return 1
    except BrokenPipeError:  # the trainer has gone, and with it who would be told
        return 1
    return 0


def open_run(task: Task, environment: Mapping[str, str]) -> TrackedRun:
    """The run as the task's tracker keeps it: a new one, or what an earlier process of the same job has begun.

    Raises:
        TrackerFailed
    """
    # A client is imported where it is asked for alone: each costs time and memory.
    if task.tracker is Tracker.WANDB:
        from finetune_trainer.out.wandb import WandbRun

        return WandbRun(task, environment)
    if task.tracker is Tracker.MLFLOW:
        from finetune_trainer.out.mlflow import MlflowRun

        return MlflowRun(task, environment)
    from finetune_trainer.out.tensorboard import EventFile

    return EventFile(task)


def follow(metrics: Path, run: TrackedRun, heard: Callable[[], str | None], say: Callable[[Said], None]) -> None:
    """Send every row of the file, those to come too, until the last word.

    Args:
        heard: waits a little; the last word, or None while there is none.

    Raises:
        TrackerFailed
    """
    sent = 0
    with metrics.open("rb") as file:
        while True:
            word = heard()
            while rows := list(islice(complete_rows(file), BATCH_ROWS)):
                run.send(rows)
                sent += len(rows)
                say(Said())
            say(Said(sent=sent))
            if word is not None:
                break
    run.close(word == FINISHED)


def _heard() -> str | None:
    ready, _, _ = select.select([sys.stdin], [], [], PERIOD_SECONDS)
    if not ready:
        return None
    signal.alarm(LAST_SECONDS)
    return sys.stdin.readline()


if __name__ == "__main__":
    main()
