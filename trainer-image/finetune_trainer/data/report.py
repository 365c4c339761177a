"""data-report.json: every bad row and the statistics of each file, written as the rows are read.

However many rows are bad, memory holds the first few; the file gets all. It takes its name when it is complete.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Any

from finetune_api.report import DATA_SENTENCES
from finetune_api.status import MAX_DATA_ERRORS, DataError
from finetune_trainer.data.rows import Problem
from finetune_trainer.files import replace

MAX_FIELD = 128


class DataReport:
    """The report being written. `summary` is what stands beside the errors; it is given before the end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.first: list[DataError] = []
        self.bad_rows: dict[str, int] = {}
        """Bad rows by file."""
        self.summary: dict[str, Any] = {}
        self._temporary = path.with_name(f".{path.name}.tmp")
        self._separator = ""

    def add(self, file: str, line: int, problems: list[Problem]) -> None:
        """A bad row of `file` (trainingFile or validationFile) and all that is wrong with it."""
        self.bad_rows[file] = self.bad_rows.get(file, 0) + 1
        for problem in problems:
            error = DataError(
                line=line,
                file=file,
                field=problem.field[:MAX_FIELD],
                code=problem.code,
                message=DATA_SENTENCES[problem.code],
            )
            if len(self.first) < MAX_DATA_ERRORS:
                self.first.append(error)
            self._file.write(f"{self._separator}\n{json.dumps(error.to_json())}")
            self._separator = ","

    @property
    def bad_row_count(self) -> int:
        """Bad rows of all files."""
        return sum(self.bad_rows.values())

    def __enter__(self) -> DataReport:
        self._file = self._temporary.open("w", encoding="utf-8")
        self._file.write('{"errors": [')
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._file:
            summary = json.dumps({**self.summary, "errorCount": self.bad_row_count}, indent=1)
            self._file.write(f"\n],\n{summary.removeprefix('{').lstrip()}\n")
        if error is None:
            replace(self._temporary, self.path)
        else:
            self._temporary.unlink()
