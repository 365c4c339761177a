"""Object stores, each by the client of the fsspec family: s3:// gs:// az://.

Credentials and endpoints are those of the environment (AWS_*, GOOGLE_*, AZURE_*). Whatever a client raises becomes one
of three: it is not there, it may not be touched, or it could not be reached.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import Enum, auto

import fsspec
from aiohttp import ClientError
from azure.core.exceptions import AzureError, ClientAuthenticationError, ResourceNotFoundError
from botocore.exceptions import BotoCoreError, NoCredentialsError
from fsspec.spec import AbstractFileSystem
from google.auth.exceptions import GoogleAuthError
from s3fs import S3FileSystem


class Trouble(Enum):
    """Who has to act."""

    NOT_FOUND = auto()
    """The bucket or the object does not exist."""
    REFUSED = auto()
    """The credentials are missing, or may not do this."""
    UNREACHABLE = auto()
    """The network or the store: may pass by itself."""


class StoreFailed(Exception):
    """A store did not do what was asked of it; the text says why, in words for the user."""

    def __init__(self, trouble: Trouble, problem: str) -> None:
        super().__init__(problem)
        self.trouble = trouble


def filesystem(uri: str) -> AbstractFileSystem:
    """The client of the store that `uri` names. It keeps no listings: another process writes there too.

    Raises:
        StoreFailed
    """
    with asking():
        found, _ = fsspec.url_to_fs(uri, use_listings_cache=False, skip_instance_cache=True)
    return found


def names_below(files: AbstractFileSystem, uri: str) -> list[str]:
    """Paths of the objects below the folder `uri`, relative to it and sorted.

    A key is any text; one that would lead out of a folder on this machine is left out. Raises what a client raises:
    call it in `asking`.
    """
    root = f"{files._strip_protocol(uri)}/"
    names = (str(found).removeprefix(root) for found in files.find(root))
    return sorted(name for name in names if not {"", ".", ".."} & set(name.split("/")))


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
        raise StoreFailed(Trouble.REFUSED, "the credentials are missing or do not allow it") from error
    except (OSError, BotoCoreError, AzureError, ClientError) as error:
        raise StoreFailed(Trouble.UNREACHABLE, type(error).__name__) from error
