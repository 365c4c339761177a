"""data-report.json: every finding and the statistics of each file, written as the rows are read.

However many rows are bad, memory holds the first few; findings go to temporary files and from there into the report,
where errors stand before warnings.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, TextIO

from finetune_api.findings import DATA_SENTENCES, DATA_WARNINGS, DataErrorCode, DataWarningCode
from finetune_api.status import MAX_DATA_ERRORS, DataError
from finetune_trainer.data.rows import Problem

MAX_FIELD = 128
MAX_LINES = 5
"""Lines that are remembered of each code."""
COPY_CHARACTERS = 1 << 16


class Findings:
    """What was found in one file. `name` is trainingFile or validationFile; `scratch` is a folder with room."""

    def __init__(self, name: str, scratch: Path | None = None) -> None:
        self.name = name
        self.first: list[DataError] = []
        self.error_count = 0
        self.bad_rows = 0
        self.warned: Counter[DataWarningCode] = Counter()
        self.broken: Counter[DataErrorCode] = Counter()
        self.lines: dict[str, list[int]] = {}
        """The first lines of each code."""
        self._files = ExitStack()
        self._errors, self._warnings = (self._files.enter_context(_spool(scratch)) for _ in range(2))

    def errors(self, line: int, problems: list[Problem]) -> None:
        """A bad row and all that is wrong with it."""
        self.bad_rows += 1
        for problem in problems:
            field, message = problem.field[:MAX_FIELD], DATA_SENTENCES[problem.code]
            error = {"line": line, "field": field, "code": problem.code, "message": message}
            if len(self.first) < MAX_DATA_ERRORS:
                self.first.append(DataError(file=self.name, **error))
            _append(self._errors, self.error_count, error)
            self.error_count += 1
            self.broken[problem.code] += 1
            self._note(problem.code, line)

    def warning(self, line: int, code: DataWarningCode) -> None:
        """A row that is odd."""
        _append(self._warnings, self.warned.total(), {"line": line, "code": code, "message": DATA_WARNINGS[code]})
        self.warned[code] += 1
        self._note(code, line)

    def _note(self, code: str, line: int) -> None:
        lines = self.lines.setdefault(code, [])
        if len(lines) < MAX_LINES and line not in lines:
            lines.append(line)

    def write(self, out: TextIO, head: dict[str, Any], tail: dict[str, Any]) -> None:
        """The report of this file as a JSON object: `head`, the count, errors, warnings, `tail`."""
        out.write(f"{{{_members(head)}{_members({'errorCount': self.error_count})}")
        for name, found in (("errors", self._errors), ("warnings", self._warnings)):
            out.write(f'"{name}": [')
            found.seek(0)
            while text := found.read(COPY_CHARACTERS):
                out.write(text)
            out.write("\n],\n" if name == "errors" else "\n]")
        out.write("".join(f",\n{json.dumps(name)}: {json.dumps(value)}" for name, value in tail.items()) + "\n}")

    def __enter__(self) -> Findings:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._files.close()


def _spool(folder: Path | None) -> AbstractContextManager[IO[str]]:
    return tempfile.TemporaryFile("w+", encoding="utf-8", dir=folder)


@dataclass(frozen=True, slots=True)
class FileReport:
    """What the report says of one file: its findings, and what stands before and after them."""

    findings: Findings
    head: dict[str, Any]
    tail: dict[str, Any]


def write_reports(out: TextIO, reports: list[FileReport]) -> None:
    """The report of several files: a JSON object with one for each, by name."""
    count = sum(report.findings.error_count for report in reports)
    out.write(f'{{"errorCount": {count}')
    for report in reports:
        out.write(f",\n{json.dumps(report.findings.name)}: ")
        report.findings.write(out, report.head, report.tail)
    out.write("\n}\n")


def _append(file: IO[str], before: int, finding: dict[str, Any]) -> None:
    file.write(f"{',' if before else ''}\n{json.dumps(finding)}")


def _members(values: dict[str, Any]) -> str:
    """Members of a JSON object, each with the comma that more follow after."""
    return "".join(f"{json.dumps(name)}: {json.dumps(value)},\n" for name, value in values.items())
