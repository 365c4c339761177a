"""The write budget: how often a status may be written for nothing but progress, over all jobs, and whose turn it is.

The budget is spent where a job is woken, not where its status is written: a look costs requests even when it may not
write in the end. The job that has gone unwritten the longest comes first, so none starves behind the others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from finetune_operator.queue import Key

Wake = Callable[[Key], Awaitable[None]]
NEVER = float("-inf")


class Pace:
    """Grants writes that bring nothing but progress, `per_second` of them, evenly spread."""

    def __init__(
        self, wake: Wake, per_second: float, clock: Callable[[], float], waiting_jobs: Callable[[], int] = lambda: 0
    ) -> None:
        """`wake` is called for the job whose turn it is; `clock` counts seconds; `waiting_jobs` tells how many jobs
        wait for a look: behind more than a second's worth no turn is given, or all of them would come at once."""
        self._wake, self._clock, self._waiting_jobs = wake, clock, waiting_jobs
        self._gap, self._most = 1.0 / per_second, per_second
        self._next = clock()
        self._waiting: set[Key] = set()
        self._granted: set[Key] = set()
        self._written: dict[Key, float] = {}
        self._wanted = asyncio.Event()

    def wants(self, key: Key) -> None:
        """`key` has progress that is not written yet."""
        if key not in self._granted:
            self._waiting.add(key)
            self._wanted.set()

    def may_write(self, key: Key) -> bool:
        """Whether a look that found progress alone may write it: its turn has come, or nobody else waits.

        One that may not is woken when its turn comes.
        """
        if key in self._granted or (not self._waiting - {key} and self._clock() >= self._next):
            if key not in self._granted:
                self._next = self._clock() + self._gap
            return True
        self.wants(key)
        return False

    def looked(self, key: Key, *, wrote: bool) -> None:
        """A look at `key` has ended, with everything that is known of it written or nothing to write."""
        self._granted.discard(key)
        self._waiting.discard(key)
        if wrote:
            self._written[key] = self._clock()

    def forget(self, key: Key) -> None:
        """The job is final or gone."""
        self.looked(key, wrote=False)
        self._written.pop(key, None)

    def waiting(self) -> int:
        """Jobs whose progress waits for its turn."""
        return len(self._waiting)

    async def run(self) -> None:
        """Wake jobs in their turn until cancelled."""
        while True:
            await self._wanted.wait()
            await asyncio.sleep(max(0.0, self._next - self._clock()))
            if not self._waiting:
                self._wanted.clear()
                continue
            if self._clock() < self._next:
                continue
            self._next = self._clock() + self._gap
            if self._waiting_jobs() > self._most:
                continue
            key = min(self._waiting, key=lambda waiting: self._written.get(waiting, NEVER))
            self._waiting.discard(key)
            self._granted.add(key)
            await self._wake(key)
