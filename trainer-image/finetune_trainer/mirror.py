"""Between a run's folder and where its output is asked for.

A run always works in a folder. On a volume that folder is the output, and there is nothing to do. For an object store
it lies in the pod's temporary storage, and the mirror is told whenever something in it is complete, is wanted, or is
of no use any more. An object is there whole or not at all; of several, the one that vouches for the others goes up last
and is taken away first. So whenever a process is killed, nothing half uploaded looks complete.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fsspec.spec import AbstractFileSystem

from finetune_api.failures import FailureCode
from finetune_trainer.failures import failed
from finetune_trainer.files import is_full
from finetune_trainer.objects import abort_uploads, asking, create, filesystem, list_folder
from finetune_trainer.trouble import StoreFailed, Trouble


class Mirror:
    """That of a volume: what is written there is where it belongs."""

    def abort_uploads(self, folder: Path) -> None:
        """Clear away the uploads into `folder` that a killed process has left unfinished."""

    def names(self, folder: Path) -> list[str]:
        """What lies in `folder`, sorted."""
        return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []

    def put_file(self, path: Path, name: Path | None = None) -> None:
        """`path` is complete, and is what is to be called `name`; absent = so already."""

    def claim(self, path: Path) -> None:
        """`path` is complete, but counts only if nobody was there before."""

    def put_folder(self, folder: Path, last: str | None = None, kept: Collection[str] = ()) -> None:
        """`folder` is complete and replaces what had its name; its file `last` vouches for the others.

        Args:
            kept: files of it that others put.
        """

    def fetch_file(self, path: Path) -> None:
        """Have `path` as it was put, or not at all."""

    def fetch_folder(self, folder: Path) -> None:
        """Have in `folder` what was put there, and nothing else."""

    def remove_file(self, path: Path) -> None:
        """`path` has been removed."""

    def remove_folder(self, folder: Path, first: str | None = None) -> None:
        """`folder` has been removed; its file `first` vouched for the others."""

    def remove_halves(self, folder: Path, last: str) -> None:
        """Remove the folders in `folder` whose file `last` was never put."""

    def spare(self, path: Path) -> None:
        """The file or folder `path` was put, and is not needed here."""


VOLUME = Mirror()


@dataclass(frozen=True, slots=True)
class StoreMirror(Mirror):
    """That of an object store. Every method raises RunFailed: OutputNotWritable, StorageFull."""

    root: Path
    """Folder on this machine that stands for `uri`."""
    uri: str
    files: AbstractFileSystem

    @classmethod
    def of(cls, root: Path, uri: str) -> StoreMirror:
        """The mirror between the folder `root` and the objects below `uri`.

        Raises:
            RunFailed: OutputNotWritable: the store's client cannot be made.
        """
        with _named(uri, root):
            return cls(root, uri, filesystem(uri))

    def abort_uploads(self, folder: Path) -> None:
        with self._asking():
            abort_uploads(self.files, self._object(folder))

    def names(self, folder: Path) -> list[str]:
        return sorted({name.split("/", 1)[0] for name in self._below(folder)})

    def put_file(self, path: Path, name: Path | None = None) -> None:
        with self._asking():
            self.files.put_file(str(path), self._object(name or path))

    def claim(self, path: Path) -> None:
        with self._asking():
            create(self.files, self._object(path), path.read_bytes())

    def put_folder(self, folder: Path, last: str | None = None, kept: Collection[str] = ()) -> None:
        own = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        there = self._below(folder)
        self._remove(folder, sorted((there - {*own, *kept}) | (there & {last}), key=lambda name: name != last))
        for name in sorted(own, key=lambda name: name == last):
            self.put_file(folder / name)

    def fetch_file(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        if (content := self._content(path)) is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)

    def fetch_folder(self, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for name in sorted(self._below(folder)):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            with self._asking():
                self.files.get_file(self._object(folder / name), str(folder / name))

    def remove_file(self, path: Path) -> None:
        """One that is gone, by another's hand or by a request whose answer was lost, is removed."""
        with _named(self.uri, self.root):
            try:
                with asking():
                    self.files.rm_file(self._object(path))
            except StoreFailed as problem:
                if problem.trouble is not Trouble.NOT_FOUND:
                    raise

    def remove_folder(self, folder: Path, first: str | None = None) -> None:
        self._remove(folder, sorted(self._below(folder), key=lambda name: (name != first, name)))

    def remove_halves(self, folder: Path, last: str) -> None:
        there = self._below(folder)
        for name in self.names(folder):
            if f"{name}/{last}" not in there:
                self.remove_folder(folder / name)

    def spare(self, path: Path) -> None:
        path.unlink() if path.is_file() else shutil.rmtree(path, ignore_errors=True)

    def _remove(self, folder: Path, names: Iterable[str]) -> None:
        for name in names:
            self.remove_file(folder / name)

    def _content(self, path: Path) -> bytes | None:
        with _named(self.uri, self.root):
            try:
                with asking():
                    return bytes(self.files.cat_file(self._object(path)))
            except StoreFailed as problem:
                if problem.trouble is not Trouble.NOT_FOUND:
                    raise
        return None

    def _below(self, folder: Path) -> set[str]:
        """Paths of the objects below `folder`, relative to it."""
        with _named(self.uri, self.root):
            return {found.name for found in list_folder(self.files, self._object(folder))}

    def _object(self, path: Path) -> str:
        below = path.relative_to(self.root).as_posix()
        return self.uri if below == "." else f"{self.uri}/{below}"

    @contextmanager
    def _asking(self) -> Iterator[None]:
        with _named(self.uri, self.root), asking():
            yield


@contextmanager
def _named(uri: str, root: Path) -> Iterator[None]:
    """What a store did not do, as a cause; the disk of this machine may be the one that is full."""
    try:
        yield
    except StoreFailed as problem:
        if isinstance(problem.__cause__, OSError) and is_full(problem.__cause__):
            raise failed(FailureCode.STORAGE_FULL, uri=root) from problem
        raise failed(FailureCode.OUTPUT_NOT_WRITABLE, uri=uri, problem=problem) from problem
