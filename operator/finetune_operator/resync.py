"""The safety net under the watch: all jobs are listed once a minute, and what the watch has missed is looked at.

A quiet cluster sends no events, so silence is no sign of a broken watch; a difference that stays is one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from finetune_operator.client import FINETUNE_JOBS, Cluster, ClusterError
from finetune_operator.queue import Key, WorkQueue
from finetune_operator.roster import Roster, key_of
from finetune_operator.settings import Settings

LOG = logging.getLogger(__name__)
Version = tuple[str, str]
"""uid and resourceVersion."""


@dataclass(frozen=True, slots=True)
class Difference:
    """A job that the list shows otherwise than the watch has told."""

    told: Version | None
    """What the watch has told; None = nothing."""
    since: float


class Resync:
    """Compares list and watch."""

    def __init__(
        self, cluster: Cluster, queue: WorkQueue, roster: Roster, settings: Settings, clock: Callable[[], float]
    ) -> None:
        self._cluster, self._queue, self._roster = cluster, queue, roster
        self._settings, self._clock = settings, clock
        self._differences: dict[Key, Difference] = {}
        self.hears: Callable[[Key], bool] = lambda key: False
        """Whether a job's pods have just reported: then they run, and nobody need look whether they still do."""

    async def run(self) -> None:
        """Compare until cancelled. An API server that does not answer is asked again at the next turn."""
        while True:
            await asyncio.sleep(self._settings.resync_period_seconds)
            try:
                await self.once()
            except ClusterError as error:
                LOG.warning("resync: %s", error)

    async def once(self) -> None:
        """Compare once; wake every unfinished job that is not heard, and every difference."""
        before = self._roster.versions()
        listed = await self._listed()
        told = self._roster.versions()
        for key in before.keys() - listed.keys():
            if told.get(key) == before[key]:  # not made anew since the list was begun
                self._roster.gone(key, before[key][0])
        self._differences = {
            key: self._difference(key, told.get(key))
            for key, version in listed.items()
            # What the watch has told meanwhile may be newer than the list.
            if version != told.get(key) == before.get(key)
        }
        silent = (key for key in self._roster.unfinished() if not self.hears(key))
        for key in {*silent, *self._differences}:
            await self._queue.add(key)

    def longest_difference(self) -> float:
        """Seconds that the oldest difference has stayed; 0 if there is none.

        What the watch has told since the last list is none any more: while no list is answered, nothing else would
        end it.
        """
        told = self._roster.versions()
        stay = (d for key, d in self._differences.items() if told.get(key) == d.told)
        return max((self._clock() - d.since for d in stay), default=0.0)

    def _difference(self, key: Key, told: Version | None) -> Difference:
        """A difference stays while the watch tells nothing new of the job."""
        before = self._differences.get(key)
        return before if before is not None and before.told == told else Difference(told, self._clock())

    async def _listed(self) -> dict[Key, Version]:
        namespaces: tuple[str | None, ...] = self._settings.namespaces or (None,)
        found: dict[Key, Version] = {}
        for namespace in namespaces:
            for item in await self._cluster.list(FINETUNE_JOBS, namespace, metadata_only=True):
                found[key_of(item)] = (item["metadata"]["uid"], item["metadata"]["resourceVersion"])
        return found
