"""A started job as one look sees it: the stage at work, its Job and pods, what they said, and the status with that in.

Everything that decides about a started job (decide, stop, lifetime, outcome) reads a `Look` and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from finetune_api.job import FineTuneJob
from finetune_api.report import Report
from finetune_api.runtime import RuntimeSpec
from finetune_api.status import ConditionType, JobStatus, Resolved
from finetune_api.trainer import ExitCode, Stage
from finetune_operator.plan.admit import runtime_of
from finetune_operator.plan.attempts import Tally, count
from finetune_operator.plan.lifetime import with_running_time
from finetune_operator.plan.objects import nodes_of
from finetune_operator.plan.queueing import displaced
from finetune_operator.plan.rounds import outlived, speakers
from finetune_operator.plan.state import Beside, ChildJob, Observed, Pod, Silence, timestamp
from finetune_operator.plan.told import report_of, retold


@dataclass(frozen=True, slots=True)
class Look:
    """A started job as seen now."""

    job: FineTuneJob
    stage: Stage
    status: JobStatus
    """The stored one with reports and attempts in it."""
    runtime: RuntimeSpec
    """The frozen one."""
    own: ChildJob | None
    """The stage's Job, if it is ours."""
    child: ChildJob | None
    """The Job of that name, whosever it is."""
    pods: tuple[Pod, ...]
    """Pods of `own`, oldest first; of several that train as one, the one that speaks for them."""
    leader: Pod | None
    """The newest pod that reports for all: not always the one that speaks for them."""
    there: tuple[Pod, ...]
    """Pods with this job's labels, of whatever Job."""
    reports: dict[str, Report]
    """By pod uid."""
    tally: Tally
    now: datetime
    silences: Mapping[str, Silence]
    """Running pods whose newest answer was no report, by uid."""
    claims: frozenset[str]
    """The claim of the runtime's template, if it is there."""
    published: bool
    """A pod has told that all results are where they belong."""
    beside: tuple[Beside, ...]
    """Services and NetworkPolicies by the names of ours, whosever they are."""

    @property
    def newest(self) -> Pod | None:
        """The pod at work, or the last that was."""
        return self.pods[-1] if self.pods else None

    @property
    def busy(self) -> tuple[Pod, ...]:
        """Pods that have not ended: they may still write."""
        return tuple(pod for pod in self.there if pod.ended is None)

    @property
    def taken(self) -> ChildJob | Beside | None:
        """What has the name of a child of ours and is not ours."""
        if self.child is not None and self.own is None:
            return self.child
        uid = self.job.metadata.uid
        return next((found for found in self.beside if found.owner is None or found.owner.uid != uid), None)

    @property
    def done(self) -> bool:
        """Whether the stage has done its work.

        Where no pod will come any more, what the last one has told stands for the Job controller's word: of a held
        Job's pods it counts none, and one that was lost in its last second has failed.
        """
        own = self.own
        if own is not None and own.complete:
            return True
        held = own is not None and own.suspended and (own.held or own.queue is None)
        if held and any(self._finished(pod) for pod in self.pods):
            return True
        return self.published and not self.busy and (own is None or own.failed or held)

    def report(self, pod: Pod | None) -> Report | None:
        """What that pod said."""
        return self.reports.get(pod.uid) if pod is not None else None

    def _finished(self, pod: Pod) -> bool:
        """Whether it has ended, and its last word is that all is done."""
        report = self.report(pod)
        return pod.ended is not None and report is not None and _says_done(pod, report)


def _says_done(pod: Pod, report: Report) -> bool:
    """Whether a pod tells that all is done, and its end does not belie it: it may be stopped while it still waits."""
    believed = pod.ended is None or pod.exit_code in (ExitCode.DONE, ExitCode.STOPPED)
    return believed and report.finished and report.failure is None


def stage_of(status: JobStatus) -> Stage:
    """Which child is at work: the data first, then the training."""
    return Stage.TRAIN if status.is_true(ConditionType.DATA_READY) else Stage.PREPARE


def look_at(job: FineTuneJob, status: JobStatus, observed: Observed, now: datetime) -> Look:
    """Gather what is known of the stage at work."""
    stage = stage_of(status)
    child = observed.children.get(stage)
    own = child if child is not None and child.owner is not None and child.owner.uid == job.metadata.uid else None
    there = observed.pods.get(stage, ())
    every = displaced(tuple(pod for pod in there if own is not None and pod.job_uid == own.uid), own)
    runtime = runtime_of(status.resolved or Resolved())
    pods = speakers(every, nodes_of(job, stage, runtime))
    past = outlived(pods, {attempt.pod for attempt in status.attempts})
    reports: dict[str, Report] = {}
    published = status.is_true(ConditionType.PUBLISHED)
    for pod in every:
        said = observed.reports.get(pod.uid)
        report = report_of(pod, said, job.metadata.uid or "")
        if report is not None:
            reports[pod.uid] = report
            at = said.at if said else pod.ended or timestamp(now)
            if pod.leads and pod.name not in past:
                status = retold(status, pod, report, at, job.spec.checkpointing.n_checkpoints)
                published = published or (stage is Stage.TRAIN and _says_done(pod, report))
    tally = count(job, status, stage, pods, reports, timestamp(now), stopped=_stopped(job, own))
    status = with_running_time(_with_tally(status, tally), status.attempts, tally.ended)
    return Look(
        job=job,
        stage=stage,
        status=status,
        runtime=runtime,
        own=own,
        child=child,
        pods=pods,
        leader=next((pod for pod in reversed(every) if pod.leads), None),
        there=there,
        reports=reports,
        tally=tally,
        now=now,
        silences=observed.silences,
        claims=observed.claims,
        published=published,
        beside=observed.beside,
    )


def _stopped(job: FineTuneJob, own: ChildJob | None) -> bool:
    """Whether pods end because they were told to. In a queue, Kueue's word is told apart from ours."""
    if own is None or own.queue is not None:
        return job.spec.cancel or (own is not None and own.mark is not None)
    return job.spec.cancel or own.suspended


def _with_tally(status: JobStatus, tally: Tally) -> JobStatus:
    return status.model_copy(
        update={"attempts": tally.attempts, "restarts": tally.restarts, "disruptions": tally.disruptions}
    )
