"""One look at one FineTuneJob: read it, observe, plan, apply, write the status once, then the events."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime

from pydantic import ValidationError

from finetune_api.job import FineTuneJob, job_from
from finetune_api.status import ConditionType, JobStatus
from finetune_operator.announce import Announcer
from finetune_operator.apply import apply_objects, delete_job, write_status
from finetune_operator.client import FINETUNE_JOBS, Cluster, ClusterError, Conflict, Manifest, NotFound, Unavailable
from finetune_operator.joblog import has_uid
from finetune_operator.metrics import STATUS_WRITES
from finetune_operator.observe import Departed, observe
from finetune_operator.pace import Pace
from finetune_operator.plan.decide import decide, ours, refused_child
from finetune_operator.plan.invalid import invalid_job, only_ends, shell, unreadable_status
from finetune_operator.plan.news import News, news
from finetune_operator.plan.state import Observed, Plan
from finetune_operator.poll import Poller, Told
from finetune_operator.queue import Key, RetryLater
from finetune_operator.settings import Settings
from finetune_operator.shared import Shared

LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Reconciler:
    """Looks at jobs."""

    cluster: Cluster
    poller: Poller
    departed: Departed
    settings: Settings
    pace: Pace
    announcer: Announcer
    clock: Callable[[], datetime]
    shared: Shared
    told: Callable[[Key], float | None] = lambda _: None
    """When something was last heard of a job, on the clock of `shared`; None = now."""
    news: Callable[[Key], Manifest | None] = lambda _: None
    """A job that has not started, as the watch has just told of it."""

    async def look(self, key: Key) -> float | None:
        """One look. Returns the seconds after which the next is wanted, None = when something changes.

        Raises:
            RetryLater: the API server did not let the look end.
        """
        try:
            return await self._look(*key)
        except Conflict as error:
            raise RetryLater(str(error), soon=True) from error
        except Unavailable as error:
            raise RetryLater(str(error), error.retry_after) from error
        except ClusterError as error:
            raise RetryLater(f"{type(error).__name__}: {error}") from error

    async def _look(self, namespace: str, name: str) -> float | None:
        try:
            # All that a look at a job that has not started does to it is one write, which fails if the watch is behind.
            manifest = self.news((namespace, name)) or await self.cluster.get(FINETUNE_JOBS, namespace, name)
        except NotFound:
            self._forget((namespace, name))
            return None
        has_uid(manifest["metadata"].get("uid"))
        if not ours(manifest):
            return None
        if (why := unreadable_status(manifest)) is not None:
            LOG.error("%s/%s: its status is another version's and is left alone: %s", namespace, name, why)
            return None
        after, begun = await self._act(manifest)
        if begun is not None:
            # The answer to the write that begins a stage is as live as a GET: the API server has just put that word
            # on the very object that was read. It also tells that the stage has no child yet, because only a look
            # that reads this word makes one, and this is the first. Were another operator quicker, the child's name
            # would be taken. After a crash between the two writes an ordinary look finds what there is.
            after, _ = await self._act(*begun)
        return after

    async def _act(
        self, manifest: Manifest, known: Observed | None = None
    ) -> tuple[float | None, tuple[Manifest, Observed] | None]:
        """Plan and apply. Returns when to look again and, if the write has begun a stage, the job as written and what
        was observed.

        Args:
            known: what was observed before a stage began with this state of the job: it still holds, and of that stage
                there is no child to look for.
        """
        now, namespace = self.clock(), manifest["metadata"]["namespace"]
        job, observed, plan = await self._plan(manifest, known, now)
        if plan.delete:
            await delete_job(job.metadata, self.cluster)
            return None, None
        refusal = await apply_objects(plan, namespace, self.cluster)
        if refusal is not None:
            plan = refused_child(job, plan, refusal, self.settings, now)
        written = await self._write(job, plan, now)
        if plan.status.is_final:
            self._forget(_key(job))
        if written is None or not _begins_stage(job.status, plan.status):
            return plan.look_again_after, None
        return plan.look_again_after, (written, observed)

    async def _plan(
        self, manifest: Manifest, known: Observed | None, now: datetime
    ) -> tuple[FineTuneJob, Observed, Plan]:
        try:
            job = job_from(manifest)
        except ValidationError as error:
            job = shell(manifest)
            if not only_ends(job):
                return job, Observed(), invalid_job(manifest, error, self.settings, now)
        observed = known if known is not None else await self._observe(job)
        return job, observed, decide(job, observed, self.settings, now)

    async def _observe(self, job: FineTuneJob) -> Observed:
        """The cluster as far as `job` is concerned, and what its pods have said."""
        observed = await observe(job, self.cluster, self.departed, self.settings, self.shared, self.told(_key(job)))
        told = self._told(job, observed)
        return replace(observed, reports=told.reports, silences=told.silences)

    def _told(self, job: FineTuneJob, observed: Observed) -> Told:
        """What the pods of our own children have said; from now on these are asked."""
        uid = job.metadata.uid or ""
        own = [child.uid for child in observed.children.values() if child.owner is not None and child.owner.uid == uid]
        pods = [pod for there in observed.pods.values() for pod in there if pod.job_uid in own]
        return self.poller.follow(_key(job), uid, pods)

    async def _write(self, job: FineTuneJob, plan: Plan, now: datetime) -> Manifest | None:
        """The status, if there is news in it; then the events. Returns the job as written."""
        kind = news(job.status, plan.status)
        if kind is News.NONE:
            self.pace.looked(_key(job), wrote=False)
            self.poller.recorded(_key(job))
            return None
        if kind is News.PROGRESS and not self.pace.may_write(_key(job)):
            return None
        try:
            written = await write_status(job.metadata, plan.status, self.cluster)
        except NotFound:
            return None
        except Conflict as error:
            if kind is News.PROGRESS:  # numbers have time; a look at once would only cost requests
                raise RetryLater(str(error)) from error
            raise
        STATUS_WRITES.labels(kind.value).inc()
        self.pace.looked(_key(job), wrote=True)
        self.poller.recorded(_key(job))
        self.announcer.tell(job.metadata, plan.events, now)
        return written

    def _forget(self, key: Key) -> None:
        self.poller.forget(key)
        self.pace.forget(key)


def _begins_stage(old: JobStatus | None, new: JobStatus) -> bool:
    """Whether `new` is the first status that calls for the child of a stage."""
    before = old or JobStatus()
    starts = before.start_time is None and new.start_time is not None
    prepared = not before.is_true(ConditionType.DATA_READY) and new.is_true(ConditionType.DATA_READY)
    return (starts or prepared) and not new.is_final


def _key(job: FineTuneJob) -> Key:
    return (job.metadata.namespace or "", job.metadata.name)
