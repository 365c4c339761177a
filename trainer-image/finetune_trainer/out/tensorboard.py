"""Event files for TensorBoard, written as the format has it: TensorBoard itself would bring a web server.

A file is a sequence of records, length, masked CRC of the length, data, masked CRC of the data, all little-endian; the
data of each is an Event in the wire format of protocol buffers, of which a handful of fields is needed. The numbers
below are those of event.proto, summary.proto, tensor.proto and types.proto.

Each process writes the whole of metrics.jsonl into a file of its own, whatever became of those before it, and a START
record has every reader forget what they hold. The last of them stays, for a TensorBoard that is looking at it would not
find the next file otherwise; the rest are removed. Values are single precision, for the format has no other.
"""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from google_crc32c import value as crc32c

from finetune_api.names import TENSORBOARD_DIRECTORY
from finetune_api.tracking import TrackerProblem
from finetune_trainer.out.lines import Row
from finetune_trainer.out.tracking import Task, TrackerFailed

VERSION = "brain.Event:2"
MASK = 0xA282EAD8
START, STRING = 1, 7
"""SessionLog.START, DT_STRING."""


class EventFile:
    """The run of one process in an event file."""

    def __init__(self, task: Task) -> None:
        """Begin a file.

        Raises:
            TrackerFailed
        """
        folder = Path(task.output) / TENSORBOARD_DIRECTORY
        self.url = f"{task.output_uri}/{TENSORBOARD_DIRECTORY}"
        self._path = folder / f"events.out.tfevents.{time.time_ns()}.{task.job.name}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            before = sorted(folder.glob("events.out.tfevents.*"))
            self._path.write_bytes(b"".join(map(record, _head(task.facts))))
            for path in before[:-1]:
                path.unlink()
        except OSError as error:
            raise TrackerFailed(TrackerProblem.NOT_WRITABLE, error.strerror) from error

    def send(self, rows: Sequence[Row]) -> None:
        """Append one event for each row."""
        try:
            with self._path.open("r+b") as file:  # never a file without a head, should it have been removed
                file.seek(0, 2)
                file.writelines(record(_scalars(row)) for row in rows)
        except OSError as error:
            raise TrackerFailed(TrackerProblem.NOT_WRITABLE, error.strerror) from error

    def close(self, finished: bool) -> None:
        """Every record is in the file already."""


def record(data: bytes) -> bytes:
    """`data` as a record of an event file."""
    length = struct.pack("<Q", len(data))
    return length + _checksum(length) + data + _checksum(data)


def _checksum(data: bytes) -> bytes:
    """CRC-32C, turned and shifted, so that the CRC of data that holds CRCs is none of them."""
    crc = crc32c(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + MASK) & 0xFFFFFFFF)


def _head(facts: dict[str, Any]) -> Iterator[bytes]:
    """The version, the order to forget other files, and the configuration as a text."""
    yield _event(0, _field(3, VERSION))
    yield _event(0, _field(7, _field(1, START)))
    text = json.dumps(facts, indent=2)
    shape = _field(2, _field(1, 1))
    tensor = _field(1, STRING) + _field(2, shape) + _field(8, f"```json\n{text}\n```")
    metadata = _field(1, _field(1, "text"))
    yield _event(0, _field(5, _field(1, _field(1, "configuration") + _field(8, tensor) + _field(9, metadata))))


def _scalars(row: Row) -> bytes:
    values = (_field(1, _field(1, name) + _field(2, float(value))) for name, value in row.values.items())
    return _event(row.step, _field(5, b"".join(values)))


def _event(step: int, what: bytes) -> bytes:
    return b"\x09" + struct.pack("<d", time.time()) + _field(2, step) + what


def _field(number: int, value: int | float | str | bytes) -> bytes:
    """A field of a message: an integer as varint, a number as float, the rest with its length."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    if isinstance(value, float):
        return _varint(number << 3 | 5) + struct.pack("<f", value)
    data = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])
