"""metrics.jsonl as it is read again, by whoever follows it: nothing but the file is needed for that."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the file."""

    step: int
    values: dict[str, float]
    """By name, `train/` or `eval/` before it."""


def complete_rows(file: BinaryIO) -> Iterator[Row]:
    """The rows from where `file` stands to its last whole line, behind which it stands then."""
    while (line := file.readline()).endswith(b"\n"):
        values = json.loads(line)
        yield Row(values.pop("step"), values)
    file.seek(-len(line), os.SEEK_CUR)
