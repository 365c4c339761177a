"""One look at one FineTuneJob: read it, observe, plan, apply, write the status once, then the events."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime

from pydantic import ValidationError

from finetune_api.job import FineTuneJob, job_from
from finetune_operator.apply import apply_objects, post_events, write_status
from finetune_operator.client import FINETUNE_JOBS, Cluster, ClusterError, Conflict, Manifest, NotFound, Unavailable
from finetune_operator.metrics import LOOKS, STATUS_WRITES
from finetune_operator.observe import Departed, observe
from finetune_operator.plan.decide import decide, refused_child
from finetune_operator.plan.invalid import invalid_job, shell, unreadable_status
from finetune_operator.plan.news import News, news
from finetune_operator.plan.state import Heard, Observed, Plan
from finetune_operator.poll import Poller
from finetune_operator.queue import Key, RetryLater
from finetune_operator.settings import Settings

LOG = logging.getLogger(__name__)


class ProgressBudget:
    """How many status writes per second may bring nothing but progress, over all jobs."""

    def __init__(self, per_second: float) -> None:
        self._rate = per_second
        self._tokens = max(1.0, per_second)
        self._filled: datetime | None = None

    def grants(self, now: datetime) -> bool:
        """Whether one more may be written now."""
        if self._filled is not None:
            gained = (now - self._filled).total_seconds() * self._rate
            self._tokens = min(max(1.0, self._rate), self._tokens + gained)
        self._filled = now
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True


@dataclass(frozen=True, slots=True)
class Reconciler:
    """Looks at jobs."""

    cluster: Cluster
    poller: Poller
    departed: Departed
    settings: Settings
    budget: ProgressBudget
    clock: Callable[[], datetime]

    async def look(self, key: Key) -> float | None:
        """One look. Returns the seconds after which the next is wanted, None = when something changes.

        Raises:
            RetryLater: the API server did not let the look end.
        """
        try:
            after = await self._look(*key)
        except Conflict as error:
            LOOKS.labels("conflict").inc()
            raise RetryLater(str(error), soon=True) from error
        except Unavailable as error:
            LOOKS.labels("unavailable").inc()
            raise RetryLater(str(error), error.retry_after) from error
        except ClusterError as error:
            LOOKS.labels("refused").inc()
            raise RetryLater(f"{type(error).__name__}: {error}") from error
        LOOKS.labels("done").inc()
        return after

    async def _look(self, namespace: str, name: str) -> float | None:
        now = self.clock()
        try:
            manifest = await self.cluster.get(FINETUNE_JOBS, namespace, name)
        except NotFound:
            return None
        if (why := unreadable_status(manifest)) is not None:
            LOG.error("%s/%s: its status is another version's and is left alone: %s", namespace, name, why)
            return None
        job, plan = await self._plan(manifest, now)
        refusal = await apply_objects(plan, namespace, self.cluster)
        if refusal is not None:
            plan = refused_child(job, plan, refusal, self.settings, now)
        await self._write(job, plan, now)
        return plan.look_again_after

    async def _plan(self, manifest: Manifest, now: datetime) -> tuple[FineTuneJob, Plan]:
        try:
            job = job_from(manifest)
        except ValidationError as error:
            return shell(manifest), invalid_job(manifest, error, self.settings, now)
        observed = await observe(job, self.cluster, self.departed)
        observed = replace(observed, reports=await self._reports(job, observed, now))
        return job, decide(job, observed, self.settings, now)

    async def _reports(self, job: FineTuneJob, observed: Observed, now: datetime) -> dict[str, Heard]:
        """What the pods of our own children report."""
        uid = job.metadata.uid or ""
        heard: dict[str, Heard] = {}
        for stage, child in observed.children.items():
            if child.owner is not None and child.owner.uid == uid:
                heard |= await self.poller.hear(uid, child.uid, observed.pods.get(stage, ()), now)
        return heard

    async def _write(self, job: FineTuneJob, plan: Plan, now: datetime) -> None:
        """The status, if there is news in it; then the events."""
        kind = news(job.status, plan.status)
        if kind is News.NONE or (kind is News.PROGRESS and not self.budget.grants(now)):
            return
        try:
            await write_status(job.metadata, plan.status, self.cluster)
        except NotFound:
            return
        STATUS_WRITES.labels(kind.value).inc()
        await post_events(job.metadata, plan.events, now, self.cluster)
