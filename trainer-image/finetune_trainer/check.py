"""`finetune-train check FILE`: what prepare would say of a data file, on a laptop, before there is a job.

Reads the file as prepare does, prints the findings and statistics, and keeps nothing. Needs no torch.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.table import Table

from finetune_api.data import DataOptions
from finetune_api.failures import FailureCode
from finetune_api.findings import DATA_SENTENCES, DATA_WARNINGS, DataErrorCode
from finetune_api.method import MethodType, TrainOnInputs
from finetune_api.status import Progress
from finetune_api.trainer import ExitCode
from finetune_trainer.data.check import FileCheck, Rules
from finetune_trainer.data.https import ANYWHERE
from finetune_trainer.data.model import read_without_weights
from finetune_trainer.data.report import Findings
from finetune_trainer.data.rows import Problem
from finetune_trainer.data.seen import Seen
from finetune_trainer.data.sources import fetch_file
from finetune_trainer.data.tokenise import Tokeniser
from finetune_trainer.failures import RunFailed
from finetune_trainer.files import writing_to

UNLIMITED = sys.maxsize
"""Longest sequence where neither model nor user names one."""
FILE = "trainingFile"


@dataclass(frozen=True, slots=True)
class CheckRun:
    """One call of `finetune-train check`."""

    file: str
    """A path, or the URI of a file on the Hub, in an object store or by https."""
    model: str | None
    """Folder, Hub id or URI; None = only the rules that need no model."""
    method: MethodType | None
    """None = DPO for preference rows, SFT for others."""
    max_seq_length: int | None
    options: DataOptions
    train_on_inputs: TrainOnInputs
    as_json: bool

    def run(self) -> int:
        """Check, print, and return the exit code."""
        try:
            uri = self.file if "://" in self.file else f"file://{Path(self.file).resolve()}"
            rules = self._rules()
            with (
                TemporaryDirectory(prefix="finetune-") as scratch,
                Findings(FILE) as findings,
                Seen(prompts=False) as seen,
            ):
                path = self._fetch(uri, Path(scratch))
                check = FileCheck(path, self.file, rules, findings, seen)
                self._pass(check)
                with _left_by_reader():
                    self._print(check)
                    sys.stdout.flush()
        except RunFailed as end:
            print(end.failure.sentence, file=sys.stderr)
            return end.failure.exit_code
        return ExitCode.DATA_INVALID if findings.error_count else ExitCode.DONE

    def _fetch(self, uri: str, scratch: Path) -> Path:
        return fetch_file(uri, {}, offline=False, field="FILE", web=ANYWHERE, scratch=scratch).path

    def _rules(self) -> Rules:
        if self.model is None:
            return Rules(self.method, None, self.max_seq_length or UNLIMITED, self.options)
        model = read_without_weights(self.model, self.options.chat_template)
        tokenise = Tokeniser(model.chat, model.vocab_size, self.train_on_inputs)
        return Rules(self.method, tokenise, self.max_seq_length or model.longest or UNLIMITED, self.options)

    def _pass(self, check: FileCheck) -> None:
        """Read the file; rows that do not fit the method are a finding here, not the end of a job."""
        try:
            with _Watched() as watched, writing_to(tempfile.gettempdir()):
                for _ in check.rows(watched.tell):
                    pass
        except RunFailed as end:
            if end.failure.code is not FailureCode.METHOD_NEEDS_PREFERENCE:
                raise
            check.findings.errors(check.tally.line, [Problem("", DataErrorCode.NOT_PREFERENCE)])

    def _print(self, check: FileCheck) -> None:
        if self.as_json:
            tokens = {side: found.to_json() for side, found in check.lengths.statistics().items()}
            check.findings.write(sys.stdout, {"format": check.format, "rows": check.tally.rows}, {"tokens": tokens})
            print()
        else:
            print_findings(Console(highlight=False), self.file, check)


@contextmanager
def _left_by_reader() -> Iterator[None]:
    """Whoever reads what is printed may go early, as `head` does; the exit code still says what was found."""
    try:
        yield
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more as it ends


def print_findings(console: Console, file: str, check: FileCheck) -> None:
    """What was found, for people: each kind with its remedy, the first errors, statistics, the verdict."""
    findings = check.findings
    console.print(f"[bold]{escape(file)}[/]: {check.tally.rows} rows, format {check.format or 'unknown'}")
    if findings.lines:
        console.print(_kinds(findings))
    if findings.first:
        console.print(_first_errors(findings))
    if check.lengths.sides:
        console.print(_lengths(check))
    if findings.error_count:
        console.print(f"[bold red]invalid[/]: {findings.error_count} errors in {findings.bad_rows} rows")
    else:
        warned = findings.warned.total()
        console.print(f"[bold green]clean[/]{f', {warned} warnings' if warned else ''}")


def _kinds(findings: Findings) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title="Findings", title_justify="left")
    for column in ("", "code", "rows", "lines", "what to do"):
        table.add_column(column, justify="right" if column == "rows" else "left", overflow="fold")
    for code, count in findings.broken.most_common():
        table.add_row("[red]error[/]", code, str(count), _lines(findings, code, count), DATA_SENTENCES[code])
    for odd, count in findings.warned.most_common():
        table.add_row("[yellow]warning[/]", odd, str(count), _lines(findings, odd, count), DATA_WARNINGS[odd])
    return table


def _lines(findings: Findings, code: str, count: int) -> str:
    lines = findings.lines[code]
    return ", ".join(map(str, lines)) + (", ..." if count > len(lines) else "")


def _first_errors(findings: Findings) -> Table:
    cut = findings.error_count > len(findings.first)
    title = f"The first {len(findings.first)} of {findings.error_count} errors" if cut else "Errors"
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left")
    table.add_column("line", justify="right")
    table.add_column("field", overflow="fold")
    table.add_column("code", overflow="fold")
    for error in findings.first:
        table.add_row(str(error.line), escape(error.field or "the row"), error.code)
    return table


def _lengths(check: FileCheck) -> Table:
    images = f" with {check.lengths.images} images" if check.lengths.images else ""
    title = f"Tokens: {check.lengths.tokens} in {check.tally.used} rows{images} to train on"
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left")
    for column in ("side", "median", "95 %", "longest"):
        table.add_column(column, justify="left" if column == "side" else "right")
    for side, found in check.lengths.statistics().items():
        table.add_row(side, str(found.p50), str(found.p95), str(found.max))
    return table


class _Watched:
    """A bar on a terminal that shows how much of the file was read; nothing elsewhere."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        columns = (BarColumn(), TextColumn("{task.percentage:>3.0f} %"), TextColumn("{task.fields[rows]}"))
        self._bar = Bar(*columns, TimeElapsedColumn(), console=console, transient=True) if console.is_terminal else None
        self._task: TaskID | None = self._bar.add_task("", total=100, rows="") if self._bar else None

    def tell(self, progress: Progress, **_others: Any) -> None:
        """What the pass over the file says from time to time."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=progress.percentage, rows=progress.display)

    def __enter__(self) -> _Watched:
        self._shown: AbstractContextManager[Any] = self._bar or nullcontext()
        self._shown.__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        self._shown.__exit__(*raised)
