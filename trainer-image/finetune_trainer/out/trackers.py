"""The trackers of a run, each in a process of its own, so that nothing which becomes of one touches training.

A process that dies, hangs or gives up is started anew after a pause and catches up (see `follow`). A person reads of
it once, in the status. At the end trackers get a little time for what they have not sent, and then none.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import wait
from threading import Event, Lock, Thread
from time import monotonic
from types import TracebackType
from typing import IO

from pydantic import ValidationError

from finetune_api.status import TrackingStatus
from finetune_api.tracking import Tracker, TrackerProblem, failed_sentence, recovered_sentence
from finetune_trainer.out.tracking import FINISHED, Said, Task

COMMAND = (sys.executable, "-m", "finetune_trainer.out.follow")
SILENT_SECONDS = 60.0
"""How long a process may say nothing: more than any client waits for its server."""
FIRST_PAUSE, LONGEST_PAUSE = 5.0, 120.0
END_SECONDS, STOP_SECONDS = 20.0, 3.0
"""How long trackers may take when training has ended, and when it was stopped: the next process sends the rest."""
KILL_SECONDS = 1.0
"""How long a killed process may take to be gone; one that a volume holds is not waited for."""
URL_FIELDS = {
    Tracker.WANDB: "wandb_url",
    Tracker.MLFLOW: "mlflow_url",
    Tracker.TENSORBOARD: "tensorboard_uri",
}


class Trackers:
    """Follows a run for as long as the context lasts."""

    def __init__(
        self, tasks: Sequence[Task], told: Callable[[TrackingStatus], None], warn: Callable[[str], None]
    ) -> None:
        """`told` gets where the run can be looked at, `warn` what a person should know; from any thread."""
        self._told, self._warn = told, warn
        self._status = TrackingStatus()
        self._sentences: dict[Tracker, str] = {}
        self._lock = Lock()
        self._followers = [_Follower(task, self._opened, self._failed, self._recovered) for task in tasks]

    def __enter__(self) -> Trackers:
        for follower in self._followers:
            follower.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End them all, within a bounded time."""
        seconds = END_SECONDS if kind is None else STOP_SECONDS
        until = monotonic() + seconds
        for follower in self._followers:
            follower.end(finished=kind is None)
        for follower in self._followers:
            follower.join(max(0.0, until - monotonic()))
            if follower.is_alive():
                follower.give_up()
                follower.join(KILL_SECONDS)
                self._late(follower.task, seconds)

    def _opened(self, task: Task, url: str | None) -> None:
        with self._lock, suppress(ValidationError):  # a server may name its run as nobody would take it for an address
            shown = self._status.model_dump() | {URL_FIELDS[task.tracker]: url}
            self._status = TrackingStatus.model_validate(shown)
            self._told(self._status)

    def _failed(self, task: Task, problem: TrackerProblem, detail: str) -> None:
        self._say(task, failed_sentence(task.tracking, task.tracker, problem, detail))

    def _recovered(self, task: Task) -> None:
        if task.tracker in self._sentences:
            self._say(task, recovered_sentence(task.tracker))

    def _late(self, task: Task, seconds: float) -> None:
        """Of a tracker that had failed before, the cause is known, and says more."""
        recovered = recovered_sentence(task.tracker)
        if self._sentences.get(task.tracker, recovered) == recovered:
            self._failed(task, TrackerProblem.LATE, f"{seconds:g}")

    def _say(self, task: Task, sentence: str) -> None:
        with self._lock:
            if self._sentences.get(task.tracker) != sentence:
                self._sentences[task.tracker] = sentence
                self._warn(". ".join(self._sentences.values()))


class _Follower(Thread):
    """Keeps one tracker's process running."""

    def __init__(
        self,
        task: Task,
        opened: Callable[[Task, str | None], None],
        failed: Callable[[Task, TrackerProblem, str], None],
        recovered: Callable[[Task], None],
    ) -> None:
        super().__init__(name=task.tracker, daemon=True)
        self.task = task
        self._opened, self._failed, self._recovered = opened, failed, recovered
        self._process: subprocess.Popen[bytes] | None = None
        self._ending, self._finished, self._given_up = Event(), False, False
        self._lock = Lock()

    def end(self, *, finished: bool) -> None:
        """No row follows: the process is to send what is left, or, while there is none, a last one is."""
        self._finished = finished
        with self._lock:
            self._ending.set()
            if self._process is not None:
                self._hang_up(self._process)

    def give_up(self) -> None:
        """Leave the process to itself, killed if it can be."""
        self._given_up = True
        with self._lock:
            if self._process is not None:
                self._process.kill()

    def run(self) -> None:
        """Start the process, again and again, until it has ended well or everything is over."""
        pause, is_last = FIRST_PAUSE, False
        while not (is_last or self._given_up):
            is_last = self._ending.is_set()
            problem = self._followed()
            if problem is None or self._given_up:
                return
            self._failed(self.task, *problem)
            self._ending.wait(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    def _followed(self) -> tuple[TrackerProblem, str] | None:
        """One process from its start to its end; why it ended, None where it was told to."""
        pipe = subprocess.PIPE
        with subprocess.Popen(COMMAND, stdin=pipe, stdout=pipe, bufsize=0, start_new_session=True) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            with self._lock:
                self._process = process
                _write(process.stdin, self.task.model_dump_json(exclude_none=True) + "\n")
                if self._ending.is_set():
                    self._hang_up(process)
            problem = self._listen(process.stdout)
            process.kill()
            with self._lock:
                self._process = None
                process.stdin.close()
        if problem is not None or process.returncode == 0:
            return problem
        return TrackerProblem.ENDED, _end_of(process.returncode)

    def _listen(self, words: IO[bytes]) -> tuple[TrackerProblem, str] | None:
        while wait([words.fileno()], SILENT_SECONDS):
            line = words.readline()
            if not line:
                return None
            said = Said.model_validate_json(line)
            if said.url is not None:
                self._opened(self.task, said.url)
            if said.problem is not None:
                return said.problem, said.detail
            if said.sent is not None:
                self._recovered(self.task)
        return TrackerProblem.SILENT, f"{SILENT_SECONDS:g}"

    def _hang_up(self, process: subprocess.Popen[bytes]) -> None:
        """Let the process know that no row follows."""
        assert process.stdin is not None
        if not process.stdin.closed:
            _write(process.stdin, FINISHED if self._finished else "")
            process.stdin.close()


def _write(pipe: IO[bytes], text: str) -> None:
    """Say something to a process, which may have ended: its output tells."""
    try:
        pipe.write(text.encode())
    except BrokenPipeError:
        return


def _end_of(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"
