"""Events are told in the background, one after the other: they are news for people, and no write waits for them.

The status holds the truth. When there are too many, the oldest are dropped; when the operator dies, some are not told.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from datetime import datetime

from finetune_api.job import ObjectMeta
from finetune_operator.apply import post_event
from finetune_operator.client import Cluster
from finetune_operator.plan.state import Event

LOG = logging.getLogger(__name__)
MOST_WAITING = 4000
GAP_SECONDS = 0.05
"""Time between two events."""
BUSY_GAPS = 20
"""That many times as long while jobs wait for a look: looks come first when a thousand start."""


class Announcer:
    """Posts events in their order."""

    def __init__(self, cluster: Cluster, waiting_jobs: Callable[[], int]) -> None:
        """`waiting_jobs` tells how many jobs wait for a look."""
        self._cluster, self._waiting_jobs = cluster, waiting_jobs
        self._waiting: deque[tuple[ObjectMeta, Event, datetime]] = deque(maxlen=MOST_WAITING)
        self._more = asyncio.Event()

    def tell(self, metadata: ObjectMeta, events: tuple[Event, ...], now: datetime) -> None:
        """Put these events down to be posted; of too many the oldest are forgotten."""
        lost = max(0, len(self._waiting) + len(events) - MOST_WAITING)
        if lost:
            LOG.warning("%d events are not told: too many are waiting", lost)
        self._waiting.extend((metadata, event, now) for event in events)
        self._more.set()

    async def run(self) -> None:
        """Post until cancelled."""
        while True:
            await self._more.wait()
            if not self._waiting:
                self._more.clear()
                continue
            metadata, event, now = self._waiting.popleft()
            await post_event(metadata, event, now, self._cluster)
            await self._pause()

    async def _pause(self) -> None:
        """The time until the next event; it is over soon after no job waits any more."""
        for _ in range(BUSY_GAPS):
            await asyncio.sleep(GAP_SECONDS)
            if not self._waiting_jobs():
                return
