"""A work queue of keys: each once, one worker per key, back-off with jitter, and looks at a later time.

Kubernetes controllers rest on these few rules: a key that is added while it is worked on is worked on again after;
what is added twice is done once; what fails is tried again, later each time.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field

from finetune_operator.joblog import about
from finetune_operator.metrics import LOOK_ERRORS, LOOK_SECONDS

LOG = logging.getLogger(__name__)
FIRST_RETRY_SECONDS, LONGEST_RETRY_SECONDS = 0.5, 60.0
SOON_SECONDS = 0.1
"""The first retry of what failed because something has changed meanwhile."""
LONGEST_ASKED_SECONDS = 120.0
"""Of what a server asks us to wait."""
PATIENCE_SECONDS = 30.0
"""How long a key whose time has come lets those go first that have just been asked for."""
SPARE_TIMERS = 64
"""Overtaken timers that may be kept whatever the number of keys. Without a bound each look at a job would leave one
until the deadline or time to live that it waits for, days ahead."""

Key = tuple[str, str]
"""(namespace, name)"""
Work = Callable[[Key], Awaitable[float | None]]
"""Does one key; returns the seconds after which it wants to be done again, or None."""


class RetryLater(Exception):
    """Work that cannot be done now.

    Attributes:
        after: least seconds to wait, where a server has asked for it.
        soon: it failed because something has changed meanwhile, so that it may well succeed at once.
    """

    def __init__(self, message: str, after: float | None = None, *, soon: bool = False) -> None:
        super().__init__(message)
        self.after = after
        self.soon = soon


@dataclass
class _Keys:
    asked: dict[Key, float] = field(default_factory=dict)
    """Added, and waiting for a worker, since when; in the order of arrival."""
    ripe: dict[Key, float] = field(default_factory=dict)
    """Waiting likewise, because their time has come or they were added while they were worked on."""
    busy: set[Key] = field(default_factory=set)
    again: dict[Key, float] = field(default_factory=dict)
    """Added while busy, since when."""
    told: dict[Key, float] = field(default_factory=dict)
    """When those that wait or are worked on were last added."""
    due: dict[Key, float] = field(default_factory=dict)
    failures: dict[Key, int] = field(default_factory=dict)


class WorkQueue:
    """Keys to work on."""

    def __init__(self, clock: Callable[[], float], jitter: random.Random | None = None) -> None:
        self._clock = clock
        self._jitter = jitter or random.Random()
        self._keys = _Keys()
        self._timers: list[tuple[float, Key]] = []
        self._changed = asyncio.Condition()
        self._closed = False

    async def add(self, key: Key) -> None:
        """Work on `key` as soon as a worker is free."""
        async with self._changed:
            self._add(key, self._keys.asked)
            self._changed.notify_all()

    async def add_after(self, key: Key, seconds: float) -> None:
        """Work on `key` in `seconds`, or earlier if it is added meanwhile. The nearest time wins."""
        async with self._changed:
            self._schedule(key, seconds)
            self._changed.notify_all()

    async def run(self, work: Work, workers: int) -> None:
        """Work until cancelled."""
        async with asyncio.TaskGroup() as group:
            for number in range(workers):
                group.create_task(self._worker(work), name=f"worker {number}")

    async def close(self) -> None:
        """Begin no more work, and return when what is under way has ended."""
        async with self._changed:
            self._closed = True
            await self._changed.wait_for(lambda: not self._keys.busy)

    def told(self, key: Key) -> float:
        """When `key`, which is worked on, was last added: what its work knows is new enough if it is newer."""
        return self._keys.told.get(key, self._clock())

    def oldest_age(self) -> float:
        """Seconds that the longest-waiting key has been ready; 0 if none waits."""
        waiting = [*self._keys.asked.values(), *self._keys.ripe.values(), *self._keys.again.values()]
        return max(0.0, self._clock() - min(waiting)) if waiting else 0.0

    def depth(self) -> int:
        """Keys that wait for a worker."""
        return len(self._keys.asked) + len(self._keys.ripe) + len(self._keys.again)

    async def _worker(self, work: Work) -> None:
        while True:
            key = await self._take()
            about(*key)
            started = self._clock()
            # One job's bug must neither end the operator nor the other jobs: whatever it raises is its own failure.
            (outcome,) = await asyncio.gather(work(key), return_exceptions=True)
            LOOK_SECONDS.observe(self._clock() - started)
            if isinstance(outcome, asyncio.CancelledError):
                raise outcome
            await self._done(key, outcome)

    async def _take(self) -> Key:
        async with self._changed:
            while True:
                self._ripen()
                lane = self._lane()
                if lane and not self._closed:
                    key = next(iter(lane))
                    del lane[key]
                    self._keys.busy.add(key)
                    return key
                await self._wait()

    def _lane(self) -> dict[Key, float]:
        """Of the keys that wait, those of which the first is next: jobs that are new or changed before news of those
        that run. When a thousand are applied at once, all have begun sooner, and no news waits for long."""
        asked, ripe = self._keys.asked, self._keys.ripe
        patient = not ripe or self._clock() - next(iter(ripe.values())) < PATIENCE_SECONDS
        return asked if asked and patient else ripe

    async def _wait(self) -> None:
        """Until something is added or the next timer is due."""
        seconds = self._timers[0][0] - self._clock() if self._timers else None
        # Not wait_for: until Python 3.12 it may take a cancellation for the end of its time.
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds if seconds is None else max(seconds, 0.001)):
                await self._changed.wait()

    async def _done(self, key: Key, outcome: float | BaseException | None) -> None:
        async with self._changed:
            self._keys.busy.discard(key)
            if isinstance(outcome, BaseException):
                self._failed(key, outcome)
            else:
                self._keys.failures.pop(key, None)
                if outcome is not None:
                    self._schedule(key, outcome)
            since = self._keys.again.pop(key, None)
            if since is None:
                self._keys.told.pop(key, None)
            else:
                self._keys.due.pop(key, None)
                self._keys.ripe[key] = since
            self._changed.notify_all()

    def _failed(self, key: Key, error: BaseException) -> None:
        LOOK_ERRORS.labels(type(error.__cause__ or error).__name__).inc()
        failures = self._keys.failures[key] = self._keys.failures.get(key, 0) + 1
        first = SOON_SECONDS if isinstance(error, RetryLater) and error.soon else FIRST_RETRY_SECONDS
        later = min(first * 2 ** min(failures - 1, 20), LONGEST_RETRY_SECONDS)
        seconds = later * (0.5 + 0.5 * self._jitter.random())
        if isinstance(error, RetryLater):
            # What a server asks for is the least, so that one that says "at once" for ever is not asked for ever at
            # once; and a day that it may ask for by mistake is no reason to leave a job alone so long.
            seconds = max(seconds, min(error.after or 0.0, LONGEST_ASKED_SECONDS))
            LOG.info("%s/%s: %s; next look in %.1f s", *key, error, seconds)
        else:
            LOG.error("%s/%s: the look failed; next in %.1f s", *key, seconds, exc_info=error)
        self._schedule(key, seconds)

    def _add(self, key: Key, lane: dict[Key, float]) -> None:
        keys, now = self._keys, self._clock()
        keys.due.pop(key, None)
        if key in keys.busy:
            keys.again.setdefault(key, now)
        elif key not in keys.asked:
            lane[key] = keys.ripe.pop(key, now)
        keys.told[key] = now

    def _schedule(self, key: Key, seconds: float) -> None:
        keys, moment = self._keys, self._clock() + seconds
        waits = key in keys.asked or key in keys.ripe or key in keys.again
        if waits or keys.due.get(key, moment + 1) <= moment:
            return
        keys.due[key] = moment
        heapq.heappush(self._timers, (moment, key))
        if len(self._timers) > 2 * len(self._keys.due) + SPARE_TIMERS:
            self._timers = [(moment, key) for key, moment in self._keys.due.items()]
            heapq.heapify(self._timers)

    def _ripen(self) -> None:
        """Move the keys whose time has come; a timer that was overtaken is dropped."""
        while self._timers and self._timers[0][0] <= self._clock():
            moment, key = heapq.heappop(self._timers)
            if self._keys.due.get(key) == moment:
                self._add(key, self._keys.ripe)
