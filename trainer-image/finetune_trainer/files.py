"""Files that survive a crash, and digests that tell one file from another.

What is written appears under its name only when it is complete: temporary name, fsync, rename, fsync of the folder.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from safetensors import SafetensorError

from finetune_api.failures import FailureCode
from finetune_trainer.failures import failed

FULL_DISK = (errno.ENOSPC, errno.EDQUOT)

ADAPTER_WEIGHTS, MODEL_WEIGHTS, MODEL_INDEX = (
    "adapter_model.safetensors",
    "model.safetensors",
    "model.safetensors.index.json",
)


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def weight_files(folder: Path) -> list[Path]:
    """The weights in `folder`, sorted by name: the adapter, the one model file, or the shards that the index names.

    Raises:
        FileNotFoundError: there are none, or a shard is missing.
        ValueError: the index is damaged or names a file outside the folder.
    """
    for name in (ADAPTER_WEIGHTS, MODEL_WEIGHTS):
        if (folder / name).is_file():
            return [folder / name]
    shards = _shards(folder / MODEL_INDEX)
    missing = [name for name in shards if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(f"{missing[0]} is missing")
    return [folder / name for name in shards]


def _shards(index: Path) -> list[str]:
    try:
        shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"{index.name} is damaged") from error
    if not all(isinstance(name, str) and Path(name).name == name for name in shards):
        raise ValueError(f"{index.name} names a file outside its folder")
    return shards


def weights_digest(folder: Path) -> str:
    """The digest by which a checkpoint is known: that of its weights file, or, of several, that of their digests.

    Several shards: SHA-256 over the lines `<name> <hex digest>\\n`, sorted by name.

    Raises:
        FileNotFoundError, ValueError: as `weight_files`.
    """
    files = weight_files(folder)
    if len(files) == 1:
        return sha256_of(files[0])
    lines = "".join(f"{path.name} {sha256_of(path)}\n" for path in files)
    return hashlib.sha256(lines.encode()).hexdigest()


def write_atomically(path: Path, text: str) -> None:
    """Replace `path` by `text` so that a reader, or a restart after a crash, sees the old or the new, never a part."""
    with writing(path) as file:
        file.write(text)


@contextmanager
def writing(path: Path) -> Iterator[TextIO]:
    """A text file that takes the place of `path` at the end of the block, unless that raises."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            yield file
    except BaseException:
        temporary.unlink()
        raise
    replace(temporary, path)


def replace(temporary: Path, path: Path) -> None:
    """Make the complete file or folder `temporary` durable and give it its name; `path` may not be a folder yet."""
    for written in sorted(temporary.rglob("*")) if temporary.is_dir() else [temporary]:
        if written.is_file():
            sync(written)
    if temporary.is_dir():
        sync(temporary)
    temporary.replace(path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Flush a file or folder to its disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def writing_to(uri: str) -> Iterator[None]:
    """What the operating system says about writing, as a cause.

    Raises:
        RunFailed: StorageFull, OutputNotWritable.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        if is_full(error):
            raise failed(FailureCode.STORAGE_FULL, uri=uri) from error
        problem = error.strerror if isinstance(error, OSError) else error
        raise failed(FailureCode.OUTPUT_NOT_WRITABLE, uri=uri, problem=problem) from error


def is_full(error: Exception) -> bool:
    """Whether a disk or a quota is full; libraries in other languages only quote what the system says."""
    full = [os.strerror(number) for number in FULL_DISK]
    return getattr(error, "errno", None) in FULL_DISK or any(text in str(error) for text in full)
