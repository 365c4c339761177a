"""A data file of any kind as lines: told by its first bytes, unpacked and read as a stream; damage is a finding.

The bytes decide, as files on the Hub and keys of config maps often have no telling name. The name is heard only where
it promises what the bytes do not hold, and for kinds that have no mark of their own.
"""

from __future__ import annotations

import gzip
import io
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

from finetune_api.findings import DataErrorCode
from finetune_trainer.data.rows import BYTE_ORDER_MARK, Damaged, Line, Problem, json_lines
from finetune_trainer.data.zst import ZstStream

if TYPE_CHECKING:
    from finetune_trainer.data.parquet import ParquetRows

GZIP, ZSTANDARD, PARQUET = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"PAR1"
SKIPPABLE = re.compile(rb"[\x50-\x5f]\x2a\x4d\x18")
"""A frame of Zstandard without data, which parallel packers write first."""
PACKED_ENDINGS = frozenset({".gz", ".zst", ".parquet"})
UNKNOWN_MARKS = (b"PK\x03\x04", b"BZh", b"\xfd7zXZ\x00", b"ARROW1", b"Obj\x01", b"ORC")
"""Zip and spreadsheets, bzip2, xz, Arrow, Avro, ORC."""
UNKNOWN_ENDINGS = frozenset({".csv", ".tsv", ".xls", ".xlsx", ".zip", ".bz2", ".xz", ".arrow", ".avro", ".orc"})
BUFFER_BYTES = 1 << 18


class DataFile:
    """The lines of the file at `path`. `known` are the columns that some format has."""

    def __init__(self, path: Path, known: frozenset[str]) -> None:
        self.path = path
        self._known = known
        self._size = 1
        self._file: BinaryIO | None = None
        self._parquet: ParquetRows | None = None

    @property
    def share(self) -> float:
        """Part of the file that was read, from 0 to 1."""
        if self._parquet is not None:
            return self._parquet.share
        return self._file.tell() / self._size if self._file and not self._file.closed else 0.0

    def lines(self) -> Iterator[Line]:
        """Every row in order; where the file cannot be read on, the last line holds that problem.

        Raises:
            OSError: the file is out of reach.
        """
        number = 0
        try:
            for line in self._lines():
                number = line.number
                yield line
        except (Damaged, EOFError, zlib.error, gzip.BadGzipFile):
            yield Line(number + 1, Problem("", DataErrorCode.DAMAGED_FILE))

    def _lines(self) -> Iterator[Line]:
        with self.path.open("rb") as file:
            mark = file.read(8)
            self._size = max(file.seek(0, io.SEEK_END), 1)
            file.seek(0)
            if self.path.suffix.lower() in UNKNOWN_ENDINGS or mark.startswith(UNKNOWN_MARKS):
                yield Line(1, Problem("", DataErrorCode.UNKNOWN_FILE_KIND))
            elif mark.startswith(PARQUET):
                yield from self._parquet_lines()
            else:
                self._file = file
                yield from json_lines(self._unpacked(file, mark))

    def _parquet_lines(self) -> Iterator[Line]:
        """Imported only here: the library takes longer to load than a small file to read."""
        from finetune_trainer.data.parquet import ParquetRows

        self._parquet = ParquetRows(self.path, self._known)
        yield from self._parquet.lines()

    def _unpacked(self, file: BinaryIO, mark: bytes) -> BinaryIO:
        """Text that only has the name of something packed is read as text: some servers unpack on the way."""
        if mark.startswith(GZIP):
            return cast(BinaryIO, gzip.GzipFile(fileobj=file))
        if mark.startswith(ZSTANDARD) or SKIPPABLE.match(mark):
            return io.BufferedReader(ZstStream(file), BUFFER_BYTES)
        text = mark.removeprefix(BYTE_ORDER_MARK).lstrip()
        if self.path.suffix.lower() in PACKED_ENDINGS and text and not text.startswith(b"{"):
            raise Damaged
        return file
