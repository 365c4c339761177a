"""Object stores, each by the client of the fsspec family: s3:// gs:// az://.

Credentials and endpoints are those of the environment (AWS_*, GOOGLE_*, AZURE_*). Whatever a client raises becomes one
of four: it is not there, it may not be touched, it is another one than before, or it could not be reached.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import fsspec
from fsspec.asyn import sync
from fsspec.spec import AbstractFileSystem

from finetune_trainer.trouble import NOT_ALLOWED, Opened, Stored, StoreFailed, Trouble

TAGS = ("ETag", "generation", "etag")
"""What a listing calls the mark by which one content of an object is told from another: S3, Google, Azure."""
LEADS_ELSEWHERE = re.compile(r"(^|/)(\.{0,2})(/|$)|\\|\0")
"""A key is any text to a store; as a path on this machine it may not lead out of its folder."""


def filesystem(uri: str) -> AbstractFileSystem:
    """The client of the store that `uri` names. It keeps no listings: another process writes there too.

    Raises:
        StoreFailed
    """
    with asking():
        try:
            found, _ = fsspec.url_to_fs(uri, use_listings_cache=False, skip_instance_cache=True)
        except ValueError as error:  # Azure's client, of an environment that names no account
            raise StoreFailed(Trouble.REFUSED, NOT_ALLOWED) from error
    return found


def create(files: AbstractFileSystem, uri: str, content: bytes) -> None:
    """Write an object unless there is one. A store that cannot do that in one request is asked in two.

    Raises what a client raises: call it in `asking`.
    """
    with suppress(FileExistsError):
        try:
            files.pipe_file(uri, content, mode="create")
        except OSError as error:
            if error.errno != errno.ENOSYS:
                raise
            if not files.exists(uri):
                files.pipe_file(uri, content)


def abort_uploads(files: AbstractFileSystem, uri: str) -> None:
    """End the uploads below `uri` that were begun in parts and never completed.

    Only S3 keeps, and bills, such parts for ever. One that does not let us see them has a rule of its own for them.
    """
    if "s3" not in files.protocol:
        return
    bucket, prefix, _ = files.split_path(uri)
    with suppress(OSError):
        begun = files.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=f"{prefix}/")
        for upload in begun.get("Uploads", ()):
            files.abort_mpu(bucket, upload["Key"], upload["UploadId"])


@contextmanager
def asking() -> Iterator[None]:
    """What a client raises in the block, as one of our own.

    Raises:
        StoreFailed
    """
    try:
        yield
    except Exception as error:
        from finetune_trainer.clients import failure_of

        if (failure := failure_of(error)) is None:
            raise
        raise failure from error


def list_folder(store: AbstractFileSystem, uri: str) -> list[Stored]:
    """Every object below the folder `uri`, sorted by name; one whose name would lead out of it is left out.

    Raises:
        StoreFailed
    """
    scheme, root = uri.split("://", 1)
    root = root.rstrip("/")
    with asking():
        found = store.find(root, detail=True)
    listed = found if isinstance(found, dict) else {}  # Azure's client gives a list where there is no folder
    root = f"{root}/"
    return [
        Stored(name, f"{scheme}://{path}", info["size"] or 0, str(_tag(info)))
        for path, info in sorted(listed.items())
        if path.startswith(root) and not LEADS_ELSEWHERE.search(name := path.removeprefix(root))
    ]


def _tag(info: dict[str, Any]) -> str | None:
    return next((info[key] for key in TAGS if info.get(key)), None)


@contextmanager
def open_object(store: AbstractFileSystem, uri: str, start: int, tag: str | None) -> Iterator[Opened]:
    """The object `uri` from byte `start` on, if its content is still that of `tag`.

    Raises:
        StoreFailed: also later, from the chunks.
    """
    from finetune_trainer.clients import OPENERS

    scheme, path = uri.split("://", 1)
    with asking():
        size, found, body = sync(store.loop, OPENERS[scheme], store, path, start, tag)
    # Not closed here: it closes itself at its end or error, and cannot be closed while a stop interrupts its reading.
    yield Opened(start, size, found, _chunks(store, body))


def _chunks(store: AbstractFileSystem, body: Any) -> Iterator[bytes]:
    while True:
        with asking():
            chunk = sync(store.loop, anext, body, b"")
        if not chunk:
            return
        yield chunk
