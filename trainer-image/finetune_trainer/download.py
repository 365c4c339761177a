"""Files of any size from elsewhere to this machine's disk, in bounded memory, and whole or not at all.

A connection that is cut costs what was on its way: the next one goes on at the byte where it stopped, if the file is
still the same one, and starts over if it is not. So what lies on the disk is never a mixture.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

from fsspec.spec import AbstractFileSystem

from finetune_trainer.files import writing_to
from finetune_trainer.objects import filesystem, list_folder, open_object
from finetune_trainer.trouble import CHANGED, Opened, Stored, StoreFailed, Trouble

log = logging.getLogger(__name__)

WAITS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
"""Seconds before another try, beginning anew after one that brought something; then the pod ends and is retried."""
MAX_BEGINNINGS = 4
"""Of a file that changes while it is read, or of a server that cannot go on in the middle."""

Open = Callable[[int, str | None], AbstractContextManager[Opened]]
"""Opens a remote file at a byte, if its tag is still that one."""
Told = Callable[[int, int | None], None]
"""Takes the bytes that are here, and those of the whole file."""


def untold(_here: int, _size: int | None) -> None:
    """For whom nobody waits."""


def fetch_object(uri: str, path: Path, told: Told = untold) -> None:
    """Write the object `uri` to `path`.

    Raises:
        StoreFailed; RunFailed: StorageFull, OutputNotWritable: of the folder of `path`.
    """
    store = filesystem(uri)
    download(partial(open_object, store, uri), path, told)


def fetch_folder(uri: str, target: Path) -> None:
    """Write every object below the folder `uri` into the folder `target`.

    Raises:
        StoreFailed: also if there is none; RunFailed: as `fetch_object`.
    """
    store = filesystem(uri)
    found = list_folder(store, uri)
    if not found:
        raise StoreFailed(Trouble.NOT_FOUND, "there is nothing below it")
    fetch_listed(store, found, target)


def fetch_listed(store: AbstractFileSystem, files: Iterable[Stored], target: Path) -> None:
    """Write `files` into the folder `target`.

    Raises:
        StoreFailed: also if one is another than was listed; RunFailed: as `fetch_object`.
    """
    for stored in files:
        path = target / stored.name
        with writing_to(str(target)):
            path.parent.mkdir(parents=True, exist_ok=True)
        download(partial(open_object, store, stored.uri), path, listed=stored.tag)


def download(open_at: Open, path: Path, told: Told = untold, listed: str | None = None) -> None:
    """Write the file that `open_at` opens to `path`, however often the connection is cut.

    Args:
        listed: the tag that it must have; None = whatever it has.

    Raises:
        StoreFailed; RunFailed: StorageFull, OutputNotWritable: of the folder of `path`.
    """
    waits = deque(WAITS)
    with writing_to(str(path.parent)), path.open("wb") as file:
        coming = _Coming(open_at, file, told, listed)
        while not coming.whole:
            before = coming.received
            try:
                coming.go_on()
            except StoreFailed as failure:
                waits = deque(WAITS) if coming.received > before else waits
                if failure.trouble is not Trouble.UNREACHABLE or not waits:
                    raise
                log.warning("cut at byte %d (%s), going on in %s s", file.tell(), failure, waits[0])
                time.sleep(waits.popleft())


@dataclass(slots=True)
class _Coming:
    """A file of which a part is here."""

    open_at: Open
    file: BinaryIO
    told: Told
    listed: str | None
    tag: str | None = None
    size: int | None = None
    received: int = 0
    """Bytes that came, those in vain counted too."""
    beginnings: int = 0

    @property
    def whole(self) -> bool:
        """Whether nothing is missing: its size is settled by the server, or by the end of what it sent."""
        return self.beginnings > 0 and self.size == self.file.tell()

    def go_on(self) -> None:
        """Read to the end, or, if it is found to be another file by now, up to there and begin anew with the next call.

        Raises:
            StoreFailed
        """
        try:
            self._read()
        except StoreFailed as failure:
            if failure.trouble is not Trouble.CHANGED or self.listed or self.beginnings >= MAX_BEGINNINGS:
                raise
            self.tag = self.size = None

    def _read(self) -> None:
        at = self.file.tell() if self.tag else 0
        with self.open_at(at, self.tag or self.listed) as found:
            self._meet(found)
            for chunk in found.chunks:
                self.file.write(chunk)
                self.received += len(chunk)
                self.told(self.file.tell(), self.size)
        self.size = self.file.tell() if self.size is None else self.size
        if not self.whole:
            raise StoreFailed(Trouble.UNREACHABLE, "it ended early")

    def _meet(self, found: Opened) -> None:
        """Go on behind what is here, or forget that."""
        known = self.tag or self.listed
        if known and found.tag != known and (found.start or self.listed):
            raise StoreFailed(Trouble.CHANGED, CHANGED)
        if found.start == 0:
            self._begin()
        self.tag, self.size = found.tag, found.size

    def _begin(self) -> None:
        self.beginnings += 1
        if self.beginnings > MAX_BEGINNINGS:
            raise StoreFailed(Trouble.UNREACHABLE, "it cannot be read on in the middle, and was cut each time")
        if self.file.tell():
            self.file.seek(0)
            self.file.truncate()
