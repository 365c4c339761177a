"""Parquet as rows: the same columns as JSON Lines, read in small batches, every value a plain one of JSON."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]

from finetune_api.findings import DataErrorCode
from finetune_trainer.data.rows import Damaged, Line, Problem, Row

BATCH_ROWS = 64
BUFFER_BYTES = 1 << 20
TOKEN_IDS = "input_ids"


class ParquetRows:
    """The rows of a file, and how much of it was read.

    Columns that are not `known` are named in the rows but not read, whatever their type.

    Raises:
        Damaged, OSError: on opening and while rows are read.
    """

    def __init__(self, path: Path, known: frozenset[str]) -> None:
        with _damage_named():
            self._file = pq.ParquetFile(path, buffer_size=BUFFER_BYTES, pre_buffer=False)
        names = self._file.schema_arrow.names
        self._columns = [name for name in names if name in known]
        self._others: Row = dict.fromkeys(name for name in names if name not in known)
        self.number = 0

    @property
    def share(self) -> float:
        """Part of the file that was read."""
        return self.number / max(int(self._file.metadata.num_rows), 1)

    def lines(self) -> Iterator[Line]:
        """Every row with its number, from 1; token ids in place of text are refused at once."""
        if TOKEN_IDS in self._others:
            yield Line(1, Problem(TOKEN_IDS, DataErrorCode.PRETOKENISED))
            return
        if not self._columns:
            yield from self._nameless()
        for row in self._rows():
            self.number += 1
            yield Line(self.number, row if isinstance(row, Problem) else {**row, **self._others})

    def _nameless(self) -> Iterator[Line]:
        """Rows of which nothing is known but that they are there."""
        for number in range(1, self._file.metadata.num_rows + 1):
            yield Line(number, dict(self._others))

    def _rows(self) -> Iterator[Row | Problem]:
        with _damage_named():
            if self._columns:
                for batch in self._file.iter_batches(BATCH_ROWS, columns=self._columns, use_threads=False):
                    yield from _contents(batch)


@contextmanager
def _damage_named() -> Iterator[None]:
    """The library raises a plain OSError without a number for pages that are no Parquet."""
    try:
        yield
    except (pa.ArrowException, ValueError) as error:
        raise Damaged from error
    except OSError as error:
        if error.errno is not None:
            raise
        raise Damaged from error


def _contents(batch: Any) -> list[Row | Problem]:
    """The rows of a batch; one by one only where one of them is no UTF-8, which must not hide the others."""
    try:
        return [*map(_row, batch.to_pylist())]
    except UnicodeDecodeError:
        return [_judged(batch.slice(index, 1)) for index in range(batch.num_rows)]


def _judged(batch: Any) -> Row | Problem:
    try:
        return _row(batch.to_pylist()[0])
    except UnicodeDecodeError:
        return Problem("", DataErrorCode.INVALID_UTF8)


def _row(values: Row) -> Row:
    """Columns stay, also where they hold null: they are what tells the format."""
    return {name: plain(value) for name, value in values.items()}


def plain(value: Any) -> Any:
    """`value` with nothing in it that JSON does not have: bytes, times and ids as text, maps and tuples as lists.

    Within a column every structure has the keys of all rows; null stands for one that this row does not have.
    """
    if isinstance(value, dict):
        return {str(key): plain(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, bytes):
        return value.decode()
    return value if isinstance(value, str | int | float | None) else str(value)
