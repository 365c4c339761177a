"""Object stores, each by the client of the fsspec family: s3:// gs:// az://.

Credentials and endpoints are those of the environment (AWS_*, GOOGLE_*, AZURE_*). Whatever a client raises becomes one
of three: it is not there, it may not be touched, or it could not be reached.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum, auto

import fsspec
from aiohttp import ClientError
from azure.core.exceptions import AzureError, ClientAuthenticationError, ResourceNotFoundError
from botocore.exceptions import BotoCoreError, NoCredentialsError
from fsspec.spec import AbstractFileSystem
from google.auth.exceptions import GoogleAuthError


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
