"""From bytes to JSON objects with their line numbers, in memory for one line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, NoReturn, TypeAlias

from finetune_api.findings import DataErrorCode

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
    """A line that is not blank, or a row of Parquet: the object it holds, or why it holds none."""

    number: int
    """From 1, blank lines counted; of Parquet the number of the row."""
    content: Row | Problem


class Damaged(Exception):
    """The bytes of a file are not what its kind promises, or end too early."""


def json_lines(stream: BinaryIO) -> Iterator[Line]:
    """Every line of JSON Lines but the blank ones, in order."""
    number = 0
    while raw := stream.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(raw) > MAX_LINE_BYTES and not raw.endswith(b"\n"):
            _skip_line(stream)
            yield Line(number, Problem("", DataErrorCode.INVALID_JSON))
            continue
        if number == 1:
            raw = raw.removeprefix(BYTE_ORDER_MARK)
        if not raw.isspace() and raw:
            yield Line(number, parse_row(raw))


def _skip_line(stream: BinaryIO) -> None:
    while part := stream.readline(MAX_LINE_BYTES):
        if part.endswith(b"\n"):
            break


def parse_row(raw: bytes) -> Row | Problem:
    """The JSON object of a line. NaN and Infinity are no JSON; a lone surrogate is no text."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        return Problem("", DataErrorCode.INVALID_UTF8)
    try:
        row = _DECODER.decode(text)
    except (ValueError, RecursionError):
        return Problem("", DataErrorCode.INVALID_JSON)
    if not isinstance(row, dict):
        return Problem("", DataErrorCode.NOT_AN_OBJECT)
    return row


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)
"""Made once: `json.loads` with an option would make one for every line."""
