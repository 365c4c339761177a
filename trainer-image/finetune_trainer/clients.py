"""The clients of the three stores, as far as they differ: what each raises, and how an object is opened with it.

They take half a second and 70 MB to load, and most jobs need none: `objects` asks for this file where it asks a store.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

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
from gcsfs.retry import HttpError, validate_response
from google.auth.exceptions import GoogleAuthError

from finetune_trainer.trouble import CHANGED, NOT_ALLOWED, StoreFailed, Trouble

READ_BYTES = 1 << 20
"""Most bytes of an object that are in memory at a time."""
BLOCK_BYTES = 8 << 20
"""The same for Azure."""
FORBIDDEN = "Forbidden: "
"""How Google's client begins the plain OSError that it makes of a 403."""


def failure_of(error: Exception) -> StoreFailed | None:
    """What a client raises, as one of our own; None for what is no client's."""
    match error:
        case FileNotFoundError() | ResourceNotFoundError():
            return StoreFailed(Trouble.NOT_FOUND, "it does not exist")
        case PermissionError() | NoCredentialsError() | GoogleAuthError() | ClientAuthenticationError():
            return StoreFailed(Trouble.REFUSED, NOT_ALLOWED)
        case ResourceModifiedError():
            return StoreFailed(Trouble.CHANGED, CHANGED)
        case OSError() | BotoCoreError() | AzureError() | ClientError() | HttpError():
            return _by_status(error)
        case _:
            return None


def _by_status(error: Exception) -> StoreFailed:
    status = _status(error)
    if status == 412:
        return StoreFailed(Trouble.CHANGED, CHANGED)
    if status in (401, 403):
        return StoreFailed(Trouble.REFUSED, NOT_ALLOWED)
    return StoreFailed(Trouble.UNREACHABLE, type(error).__name__)


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
