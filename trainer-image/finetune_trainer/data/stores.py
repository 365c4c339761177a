"""Models that lie as a folder in an object store, kept beside those of the Hub and fetched like them.

A store has no commits. What it lists of a folder (names, sizes, tags) has a digest, which takes the commit's place: all
pods of a job train from the same files, or one of them says that these have changed.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import constants

from finetune_trainer.data.hub import is_wanted
from finetune_trainer.download import fetch_listed
from finetune_trainer.files import replace, writing_to
from finetune_trainer.objects import asking, filesystem, list_folder
from finetune_trainer.trouble import Stored, StoreFailed, Trouble

FOLDER = "finetune-stores"
"""Beside the Hub's repositories, so that a cache that pods share holds these models too."""
WEIGHTS = ".safetensors"

Read = Callable[[int, int], bytes]
"""Bytes of a file, from the first position to before the second."""


def fetch_snapshot(uri: str, digest: str | None, *, weights: bool, code: bool = False) -> tuple[Path, str]:
    """Download the files of the model `uri` that a run wants, unless they are here; return their folder and the digest.

    Args:
        digest: the one that it had before; None = whatever it is now.

    Raises:
        FileNotFoundError: it has no weights in safetensors format; ValueError: its digest is not that one; StoreFailed;
            RunFailed: StorageFull.
    """
    kept = Path(constants.HF_HUB_CACHE) / FOLDER
    if digest is not None and (found := _place(kept, uri, digest, weights, code)).is_dir():
        return found, digest
    listed = _list_model(uri)
    now = _digest(listed)
    if digest not in (None, now):
        raise ValueError("it has changed since the job was prepared: create the job anew")
    place = _place(kept, uri, now, weights, code)
    wanted = [file for file in listed if is_wanted(file.name, weights=weights, code=code)]
    with writing_to(str(kept)):
        place.parent.mkdir(parents=True, exist_ok=True)
        with _alone(place):
            if not place.is_dir():
                _fetch(uri, wanted, place)
    return place, now


def weight_readers(uri: str) -> list[Read]:
    """One for each file of weights of the model `uri`, to read parts of it.

    Raises:
        FileNotFoundError, StoreFailed: as `fetch_snapshot`; the readers too.
    """
    store = filesystem(uri)

    def reader(file: Stored) -> Read:
        def read(start: int, end: int) -> bytes:
            with asking():
                return bytes(store.cat_file(file.uri, start=start, end=end))

        return read

    return [reader(file) for file in _list_model(uri) if file.name.endswith(WEIGHTS)]


def _list_model(uri: str) -> list[Stored]:
    """Every file of the model that any run may want."""
    files = [file for file in list_folder(filesystem(uri), uri) if is_wanted(file.name, weights=True, code=True)]
    if not files:
        raise StoreFailed(Trouble.NOT_FOUND, "there is no model below it")
    if not any(file.name.endswith(WEIGHTS) for file in files):
        raise FileNotFoundError
    return files


def _digest(files: Sequence[Stored]) -> str:
    listing = [[file.name, file.size, file.tag] for file in files]
    return hashlib.sha256(json.dumps(listing).encode()).hexdigest()


def _place(kept: Path, uri: str, digest: str, weights: bool, code: bool) -> Path:
    """The folder of that content of that model; without all of its files it is another one."""
    name = hashlib.sha256(f"{uri} {digest}".encode()).hexdigest()
    return kept / f"{name}{'' if weights else '-config'}{'-code' if code else ''}"


def _fetch(uri: str, files: Sequence[Stored], place: Path) -> None:
    part = place.with_name(f"{place.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    fetch_listed(filesystem(uri), files, part)
    replace(part, place)


@contextmanager
def _alone(place: Path) -> Iterator[None]:
    """Processes that want the same model at once wait here for the one that fetches it."""
    with place.with_name(f"{place.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
