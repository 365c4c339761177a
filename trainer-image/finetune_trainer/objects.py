"""Object stores, each by the client of the fsspec family: s3:// gs:// az://.

Credentials and endpoints are those of the environment (AWS_*, GOOGLE_*, AZURE_*). Whatever a client raises becomes one
of four: it is not there, it may not be touched, it is another one than before, or it could not be reached.
"""

from __future__ import annotations

import errno
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

import fsspec
from aiohttp import ClientError
from azure.core import MatchConditions
from azure.core.exceptions import (
    AzureError,
    ClientAuthenticationError,
    HttpResponseError,
    ResourceModifiedError,
    ResourceNotFoundError,
)
from botocore.exceptions import BotoCoreError, NoCredentialsError
from fsspec.asyn import sync
from fsspec.spec import AbstractFileSystem
from gcsfs.retry import HttpError, validate_response
from google.auth.exceptions import GoogleAuthError
from s3fs import S3FileSystem

READ_BYTES = 1 << 20
"""Most bytes of an object that are in memory at a time."""
BLOCK_BYTES = 8 << 20
"""The same for Azure."""
TAGS = ("ETag", "generation", "etag")
"""What a listing calls the mark by which one content of an object is told from another: S3, Google, Azure."""
CHANGED = "it changed while it was read"
NOT_ALLOWED = "the credentials are missing or do not allow it"
FORBIDDEN = "Forbidden: "
"""How Google's client begins the plain OSError that it makes of a 403."""
LEADS_ELSEWHERE = re.compile(r"(^|/)(\.{0,2})(/|$)|\\|\0")
"""A key is any text to a store; as a path on this machine it may not lead out of its folder."""


class Trouble(Enum):
    """Who has to act."""

    NOT_FOUND = auto()
    """The bucket or the object does not exist."""
    REFUSED = auto()
    """The credentials are missing, or may not do this."""
    CHANGED = auto()
    """The object is another one than the one that was begun."""
    UNREACHABLE = auto()
    """The network or the store: may pass by itself."""


class StoreFailed(Exception):
    """A store did not do what was asked of it; the text says why, in words for the user."""

    def __init__(self, trouble: Trouble, problem: str) -> None:
        super().__init__(problem)
        self.trouble = trouble


@dataclass(frozen=True, slots=True)
class Stored:
    """An object below a folder."""

    name: str
    """Its path below the folder, as a path on this machine may be."""
    uri: str
    size: int
    """Bytes."""
    tag: str
    """Another one means another content."""


@dataclass(frozen=True, slots=True)
class Opened:
    """The content of a remote file on its way here."""

    start: int
    """Where it begins, in bytes: where it was asked to, or 0 if the server cannot."""
    size: int | None
    """Bytes of the whole file; None = the server does not say."""
    tag: str | None
    """Another one means another content; None = it cannot be told."""
    chunks: Iterator[bytes]


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
    if not isinstance(files, S3FileSystem):
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
    except (FileNotFoundError, ResourceNotFoundError) as error:
        raise StoreFailed(Trouble.NOT_FOUND, "it does not exist") from error
    except (PermissionError, NoCredentialsError, GoogleAuthError, ClientAuthenticationError) as error:
        raise StoreFailed(Trouble.REFUSED, NOT_ALLOWED) from error
    except ResourceModifiedError as error:
        raise StoreFailed(Trouble.CHANGED, CHANGED) from error
    except (OSError, BotoCoreError, AzureError, ClientError, HttpError) as error:
        status = _status(error)
        if status == 412:
            raise StoreFailed(Trouble.CHANGED, CHANGED) from error
        if status in (401, 403):
            raise StoreFailed(Trouble.REFUSED, NOT_ALLOWED) from error
        raise StoreFailed(Trouble.UNREACHABLE, type(error).__name__) from error


def _status(error: BaseException) -> int | None:
    """The HTTP status that a client had for an answer, where it still says so."""
    if isinstance(error, HttpResponseError):
        return error.status_code
    if isinstance(error, HttpError):
        return int(error.code) if error.code else None
    if str(error).startswith(FORBIDDEN):
        return 403
    answer = getattr(error.__cause__, "response", None)
    found = answer.get("ResponseMetadata", {}).get("HTTPStatusCode") if isinstance(answer, dict) else None
    return found if isinstance(found, int) else None


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
    scheme, path = uri.split("://", 1)
    with asking():
        size, found, body = sync(store.loop, OPENERS[scheme], store, path, start, tag)
    # Not closed here: it closes itself at its end or error, and cannot be closed while a stop interrupts its reading.
    yield Opened(start, size, found, _chunks(store, body))


def _chunks(store: AbstractFileSystem, body: Body) -> Iterator[bytes]:
    while True:
        with asking():
            chunk = sync(store.loop, anext, body, b"")
        if not chunk:
            return
        yield chunk


Body = Any
"""An asynchronous generator of bytes."""
Found = tuple[int | None, str | None, Body]
"""Bytes of the whole object, its tag, and what is still to come of it."""


async def _open_s3(store: Any, path: str, start: int, tag: str | None) -> Found:
    bucket, key, _ = store.split_path(path)
    wanted = {**({"IfMatch": tag} if tag else {}), **({"Range": f"bytes={start}-"} if start else {})}
    answer = await store._call_s3("get_object", Bucket=bucket, Key=key, **wanted)
    body = answer["Body"]
    return start + answer["ContentLength"], answer.get("ETag"), _reading(body.read, body.close)


async def _open_google(store: Any, path: str, start: int, tag: str | None) -> Found:
    """The tag is the object's generation. One that was replaced is not there any more, which says that it changed."""
    await store._set_session()
    headers = store._get_headers({"Range": f"bytes={start}-"} if start else None)
    answer = await store.session.get(store.url(path, generation=tag), headers=headers, params=store._get_params({}))
    try:
        if tag and answer.status == 404:
            raise StoreFailed(Trouble.CHANGED, CHANGED)
        if answer.status >= 400:
            validate_response(answer.status, await answer.read(), path)
    except BaseException:
        answer.close()
        raise
    length = answer.headers.get("Content-Length")
    size = start + int(length) if length else None
    body = _reading(answer.content.read, answer.close)
    return size, answer.headers.get("X-Goog-Generation"), body


async def _open_azure(store: Any, path: str, start: int, tag: str | None) -> Found:
    container, name, _ = store.split_path(path)
    blob = store.service_client.get_blob_client(container, name)
    found = await blob.get_blob_properties(retry_total=0, **(_unchanged(tag) if tag else {}))
    return found.size, found.etag, _blocks(blob, start, found)


OPENERS = {"s3": _open_s3, "gs": _open_google, "az": _open_azure}


async def _reading(read: Callable[[int], Awaitable[bytes]], close: Callable[[], None]) -> AsyncIterator[bytes]:
    try:
        while chunk := await read(READ_BYTES):
            yield chunk
    finally:
        close()


async def _blocks(blob: Any, start: int, found: Any) -> AsyncIterator[bytes]:
    """Azure's client gives nothing of a request that was cut: so each is for one block."""
    for at in range(start, found.size, BLOCK_BYTES):
        block = await blob.download_blob(offset=at, length=BLOCK_BYTES, retry_total=0, **_unchanged(found.etag))
        yield await block.readall()


def _unchanged(tag: str) -> dict[str, Any]:
    return {"etag": tag, "match_condition": MatchConditions.IfNotModified}
