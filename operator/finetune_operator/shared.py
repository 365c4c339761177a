"""One answer for many askers: what a thousand jobs want to know at the same moment is read once.

Nobody gets an answer that is older than the question. Whoever asks while a read is under way waits for the next one,
together with all who ask until that begins; and a question may be older than its asking: a job that has waited for a
worker since a moment is content with what was read after that. So sharing changes how often the API server is asked,
and nothing else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")
KEPT_SECONDS = 2.0
"""How long an answer is kept for questions that are older than it."""


@dataclass(frozen=True, slots=True)
class _Answer:
    begun: float
    """When its read began."""
    value: Any


@dataclass(frozen=True, slots=True)
class Shared:
    """Reads under way, those that follow on them, and answers of just now.

    Args:
        clock: seconds that only grow.
    """

    clock: Callable[[], float]
    _running: dict[Hashable, asyncio.Task[Any]] = field(default_factory=dict)
    _next: dict[Hashable, asyncio.Task[Any]] = field(default_factory=dict)
    _kept: dict[Hashable, _Answer] = field(default_factory=dict)

    async def read(self, what: Hashable, read: Callable[[], Awaitable[T]], since: float | None = None) -> T:
        """The answer of a `read` of `what` that begins now or later, or has begun after `since`.

        None is no such answer: what was not there is looked for again.

        Raises: what `read` raises, to all who share it.
        """
        kept = self._kept.get(what)
        if kept is not None and since is not None and max(since, self.clock() - KEPT_SECONDS) < kept.begun:
            known: T = kept.value
            return known
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
        begun = self.clock()
        try:
            answer = await read()
        finally:
            del self._running[what]
        self._keep(what, _Answer(begun, answer))
        return answer

    def _keep(self, what: Hashable, answer: _Answer) -> None:
        for old in [key for key, kept in self._kept.items() if kept.begun < self.clock() - KEPT_SECONDS]:
            del self._kept[old]
        self._kept.pop(what, None)
        if answer.value is not None:
            self._kept[what] = answer
