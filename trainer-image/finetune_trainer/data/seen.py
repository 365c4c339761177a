"""Which rows and prompts a file has had: digests on disk, so that memory stays the same however many there are.

sqlite keeps them in order and finds them again; its pages beyond a small cache lie in a temporary file, which nobody
else sees and which is gone with the process.
"""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from finetune_api.failures import FailureCode
from finetune_trainer.failures import failed

CACHE_KIB = 8192
PRAGMAS = ("journal_mode=OFF", "synchronous=OFF", "locking_mode=EXCLUSIVE", f"cache_size=-{CACHE_KIB}")
"""No crash has to be survived and nobody shares the file."""


class Seen:
    """Digests of rows and, where another file is to be compared with this one, of prompts.

    Raises:
        RunFailed: StorageFull: the temporary folder is full, which is not the output.
    """

    def __init__(self, *, prompts: bool = True) -> None:
        self.keeps_prompts = prompts
        self._folder = tempfile.TemporaryDirectory(prefix="finetune-seen-")
        self._table = sqlite3.connect(Path(self._folder.name) / "digests", isolation_level=None)
        for pragma in PRAGMAS:
            self._table.execute(f"PRAGMA {pragma}")
        for name in ("rows", "prompts"):
            self._table.execute(f"CREATE TABLE {name} (digest BLOB PRIMARY KEY) WITHOUT ROWID")
        self._table.execute("BEGIN")

    def add_row(self, digest: bytes) -> bool:
        """Note a row; True if it is the first of its kind."""
        with _full_disk_named():
            return self._table.execute("INSERT OR IGNORE INTO rows VALUES (?)", (digest,)).rowcount == 1

    def add_prompt(self, digest: bytes) -> None:
        """Note a prompt."""
        with _full_disk_named():
            self._table.execute("INSERT OR IGNORE INTO prompts VALUES (?)", (digest,))

    def has_row(self, digest: bytes) -> bool:
        """Whether that row was noted."""
        return self._table.execute("SELECT 1 FROM rows WHERE digest = ?", (digest,)).fetchone() is not None

    def has_prompt(self, digest: bytes) -> bool:
        """Whether that prompt was noted."""
        return self._table.execute("SELECT 1 FROM prompts WHERE digest = ?", (digest,)).fetchone() is not None

    def __enter__(self) -> Seen:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._table.close()
        self._folder.cleanup()


@contextmanager
def _full_disk_named() -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode != sqlite3.SQLITE_FULL:
            raise
        raise failed(FailureCode.STORAGE_FULL, uri=tempfile.gettempdir()) from error
