"""From the bytes of a file to JSON objects with their line numbers, in memory for one line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NoReturn, TypeAlias

from finetune_api.report import DataErrorCode

MAX_LINE_BYTES = 64 * 1024 * 1024
"""A longer line is no row (a JSON array of a whole data set, say) and must not fill the memory."""
BYTE_ORDER_MARK = b"\xef\xbb\xbf"

Row: TypeAlias = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with a row: the path of the field, "" for the row as a whole, and the kind."""

    field: str
    code: DataErrorCode


@dataclass(frozen=True, slots=True)
class Line:
    """A line that is not blank: the object it holds, or why it holds none."""

    number: int
    """From 1, blank lines counted."""
    end: int
    """Bytes of the file up to and with this line."""
    content: Row | Problem


def read_lines(path: Path) -> Iterator[Line]:
    """Every line of a JSON Lines file but the blank ones, in order."""
    with path.open("rb") as file:
        number = end = 0
        while raw := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            end += len(raw)
            if len(raw) > MAX_LINE_BYTES and not raw.endswith(b"\n"):
                end += _skip_line(file)
                yield Line(number, end, Problem("", DataErrorCode.INVALID_JSON))
                continue
            if number == 1:
                raw = raw.removeprefix(BYTE_ORDER_MARK)
            if not raw.isspace() and raw:
                yield Line(number, end, parse_row(raw))


def _skip_line(file: IO[bytes]) -> int:
    """Read to the end of the line and return the number of bytes."""
    skipped = 0
    while part := file.readline(MAX_LINE_BYTES):
        skipped += len(part)
        if part.endswith(b"\n"):
            break
    return skipped


def parse_row(raw: bytes) -> Row | Problem:
    """The JSON object of a line. NaN and Infinity are no JSON; a lone surrogate is no text."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        return Problem("", DataErrorCode.INVALID_UTF8)
    try:
        row = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return Problem("", DataErrorCode.INVALID_JSON)
    if not isinstance(row, dict):
        return Problem("", DataErrorCode.NOT_AN_OBJECT)
    return row


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")
