"""A watch, a queue that tells whom it woke, and a resync of a list that a test writes."""

from __future__ import annotations

import asyncio
from typing import Any

from finetune_operator.client import Unavailable
from finetune_operator.handlers import Watch
from finetune_operator.observe import Departed
from finetune_operator.queue import Key, WorkQueue
from finetune_operator.resync import Resync
from finetune_operator.roster import Roster
from finetune_operator.settings import Settings

STARTED = {"startTime": "2026-01-01T00:00:00Z"}
FINAL = {
    **STARTED,
    "conditions": [
        {
            "type": "Failed",
            "status": "True",
            "reason": "x",
            "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }
    ],
}


class Recorder(WorkQueue):
    """A queue that tells what was added."""

    def __init__(self) -> None:
        super().__init__(lambda: 0.0)
        self.added: list[Key] = []
        self.later: list[Key] = []
        """Those that have time."""

    async def add(self, key: Key) -> None:
        self.added.append(key)

    async def add_after(self, key: Key, seconds: float) -> None:
        (self.added if seconds < 1 else self.later).append(key)

    def taken(self) -> list[str]:
        """Names added since the last time."""
        added, self.added = self.added, []
        return [name for _, name in added]


def watching() -> tuple[Watch, Recorder]:
    queue = Recorder()
    cluster: Any = None
    return Watch(cluster, queue, Roster(), Departed()), queue


def tell(watch: Watch, manifest: dict[str, Any], kind: str | None = "MODIFIED", version: str = "1") -> None:
    manifest["metadata"]["resourceVersion"] = version
    asyncio.run(watch.job_event(event={"type": kind, "object": manifest}))


class Listing:
    """A cluster of which only the list of jobs matters."""

    def __init__(self) -> None:
        self.items: list[dict[str, Any]] = []
        self.down = False

    async def list(self, *_: Any, **__: Any) -> list[dict[str, Any]]:
        if self.down:
            raise Unavailable("down")
        return self.items


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def resyncing() -> tuple[Resync, Watch, Recorder, Listing, Clock]:
    watch, queue = watching()
    listing, clock = Listing(), Clock()
    cluster: Any = listing
    settings = Settings(resync_period_seconds=0.5)
    return Resync(cluster, queue, watch.roster, settings, clock), watch, queue, listing, clock
