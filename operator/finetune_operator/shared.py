"""One answer for many askers: what a thousand jobs want to know at the same moment is read once.

Nobody gets an answer that is older than the question: whoever asks while a read is under way waits for the next one,
together with all who ask until that begins. So sharing changes how often the API server is asked, and nothing else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Any, TypeVar

T = TypeVar("T")


class Shared:
    """Reads under way, and those that follow on them."""

    def __init__(self) -> None:
        self._running: dict[Hashable, asyncio.Task[Any]] = {}
        self._next: dict[Hashable, asyncio.Task[Any]] = {}

    async def read(self, what: Hashable, read: Callable[[], Awaitable[T]]) -> T:
        """The answer of a `read` of `what` that begins now or later.

        Raises: what `read` raises, to all who share it.
        """
        task = self._next.get(what)
        if task is None:
            task = self._next[what] = asyncio.create_task(self._after(what, read))
        # One asker's end is not the others'.
        answer: T = await asyncio.shield(task)
        return answer

    async def _after(self, what: Hashable, read: Callable[[], Awaitable[T]]) -> T:
        if (before := self._running.get(what)) is not None:
            await asyncio.wait([before])
        self._running[what] = self._next.pop(what)
        try:
            return await read()
        finally:
            del self._running[what]
