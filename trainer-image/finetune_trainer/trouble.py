"""Objects of a store in words: what is known of one, what is on its way, and why it did not come."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto

CHANGED = "it changed while it was read"
NOT_ALLOWED = "the credentials are missing or do not allow it"


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
