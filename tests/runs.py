"""Whole runs for tests: prepared, run, stopped at a chosen place, killed in a process of their own, and compared."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Timer

from finetune_api import names
from finetune_api.failures import FailureCode
from finetune_api.report import Report
from finetune_api.trainer import Stage, TrainerConfig
from finetune_trainer.failures import RunFailed
from finetune_trainer.layout import Layout
from finetune_trainer.out import publish
from finetune_trainer.out.progress import Reporter
from finetune_trainer.prepare import prepare
from finetune_trainer.run.telling import Teller
from finetune_trainer.run.train import train
from training import metrics_rows

OF_THE_CLOCK = ("time", "metrics", "warnings")
"""Facts of a saved state that hold a time, or the length of one as text, or what was said of the interruption."""


def prepared(config: TrainerConfig) -> TrainerConfig:
    prepare(config, lambda **_fields: None)
    return config


def run(config: TrainerConfig, stopping: Event | None = None) -> Report:
    reporter = Reporter(config.job, Stage.TRAIN, "pod-1")
    train(config, reporter, stopping or Event())
    return reporter.report


class Stopping(Event):
    """Is set by itself when asked for the n-th time: at a chosen micro-batch."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.left = after

    def is_set(self) -> bool:
        self.left -= 1
        return self.left < 0


def attempt(config: TrainerConfig, stopping: Event) -> int | FailureCode | None:
    """The step that a run went on from to its end, or why it ended early."""
    try:
        return run(config, stopping).resumed_from_step
    except RunFailed as end:
        return end.failure.code


def newest_state(config: TrainerConfig) -> int:
    """Step of the newest recovery state, 0 before the first."""
    steps = [int(folder.name[5:]) for folder in Layout.of(config).recovery.glob("step-*")]
    return max(steps, default=0)


@dataclass(frozen=True)
class Blow:
    """A signal that a run gets `wait` seconds after a call of `owner.name` whose arguments fulfil `when`."""

    number: signal.Signals
    owner: object
    name: str
    when: Callable[..., bool]
    wait: float = 0.0

    def aim(self) -> None:
        """At this process. A thread of its own gives it, so that it falls anywhere, whatever the machine is at."""
        real, given = getattr(self.owner, self.name), Event()

        def called(*args: object) -> object:
            result = real(*args)
            if self.when(*args) and not given.is_set():
                given.set()
                Timer(self.wait, os.kill, (os.getpid(), self.number)).start()
            return result

        setattr(self.owner, self.name, called)


def struck(config: TrainerConfig, blow: Blow) -> int:
    """Train in a process of its own that gets `blow`; returns the process's status."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    code = 1
    try:
        stopping = Event()
        signal.signal(signal.SIGTERM, lambda *_: stopping.set())
        blow.aim()
        run(config, stopping)
        code = 0
    except RunFailed as end:
        code = int(end.failure.exit_code)
    finally:
        os._exit(code)


def killed_at_random(config: TrainerConfig, first: int, last: int, numbers: random.Random) -> None:
    """SIGKILL at a random moment after one of the saved states of steps `first` to `last`."""
    step, wait = numbers.randint(first, last), numbers.uniform(0, 0.02)
    print(f"killed {1000 * wait:.1f} ms after the state of step {step}")
    status = struck(config, Blow(signal.SIGKILL, Teller, "saved", lambda _teller, saved: saved >= step, wait))
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert newest_state(config) >= step


def keep_last_states(monkeypatch) -> None:
    """Keep the recovery states that a finished run removes, for `assert_same`."""
    real = publish.tidy

    def tidy(layout: Layout, last: Report) -> None:
        shutil.copytree(layout.recovery, _kept(layout.output), dirs_exist_ok=True)
        real(layout, last)

    monkeypatch.setattr(publish, "tidy", tidy)


def _kept(output: Path) -> Path:
    return output.with_name(f"{output.name}-recovery")


def weights(output: Path) -> dict[str, bytes]:
    return {p.relative_to(output).as_posix(): p.read_bytes() for p in sorted(output.rglob("*.safetensors"))}


def published(output: Path) -> list[dict]:
    entries = json.loads((output / "manifest.json").read_text())["checkpoints"]
    return [{key: value for key, value in entry.items() if key not in ("time", "uri")} for entry in entries]


def last_state(output: Path) -> tuple[dict, dict[str, bytes]]:
    """The facts and tensors of the newest state that a finished run had."""
    folder = max(_kept(output).glob("step-*"), key=lambda folder: int(folder.name[5:]))
    facts = json.loads((folder / "state.json").read_text())
    for name in OF_THE_CLOCK:
        del facts["facts"][name]
    del facts["identity"]
    return facts, weights(folder)


def page(output: Path) -> str:
    """report.html without where it lies, its times, and how often a state was saved and found broken."""
    text = (output / names.REPORT_FILE).read_text().replace(f"file://{output}", "file://OUTPUT")
    of_the_way = (
        "<time>.*?</time>",
        '<section class="warnings">.*?</section>',
        "<dt>recoveryPeriodSeconds</dt><dd>.*?</dd>",
    )
    return re.sub("|".join(of_the_way), "", text, flags=re.DOTALL)


def assert_same(output: Path, whole: Path) -> None:
    """Both left the same: bytes of weights, rows of metrics, checkpoints, page, and the last state where it is kept."""
    assert page(output) == page(whole)
    assert weights(output) == weights(whole)
    assert metrics_rows(output / "metrics.jsonl") == metrics_rows(whole / "metrics.jsonl")
    assert published(output) == published(whole)
    assert not (output / ".finetune").exists()
    folders = [sorted(p.name for p in (folder / "checkpoints").iterdir()) for folder in (output, whole)]
    assert folders[0] == folders[1]
    if _kept(output).exists() and _kept(whole).exists():
        assert last_state(output) == last_state(whole)
