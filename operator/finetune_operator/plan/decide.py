"""What to do about one FineTuneJob: the whole story, as a pure function of what was seen."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from finetune_api.job import FineTuneJob
from finetune_api.report import Report
from finetune_api.status import ConditionType, JobStatus, Reason, Resolved
from finetune_api.trainer import Stage
from finetune_operator.plan import outcome
from finetune_operator.plan.admit import admit, runtime_of, with_says
from finetune_operator.plan.attempts import Tally, count
from finetune_operator.plan.conditions import Say, acknowledged
from finetune_operator.plan.objects import child_manifest
from finetune_operator.plan.outcome import Look
from finetune_operator.plan.state import ChildJob, Event, Observed, Plan, timestamp
from finetune_operator.plan.told import report_of, retold
from finetune_operator.plan.trainer_config import trainer_config
from finetune_operator.settings import Settings

SOON = 1.0
"""Seconds until the next look at something that is about to end."""


def decide(job: FineTuneJob, observed: Observed, settings: Settings, now: datetime) -> Plan:
    """One look at one job. A final job, or one that is being deleted, is left as it is."""
    status = job.status or JobStatus()
    if job.metadata.deletion_timestamp is not None:
        return Plan(status=status)
    if status.is_final:
        return Plan(status=acknowledged(status, job.metadata.generation))
    if status.start_time is None:
        return _cancelled_before_start(job, now) if job.spec.cancel else admit(job, observed, settings, now)
    return _follow(_look(job, status, observed, now), observed, settings, now)


def stage_of(status: JobStatus) -> Stage:
    """Which child is at work: the data first, then the training."""
    return Stage.TRAIN if status.is_true(ConditionType.DATA_READY) else Stage.PREPARE


def _look(job: FineTuneJob, status: JobStatus, observed: Observed, now: datetime) -> Look:
    """Gather what is known of the stage at work: its child, its pods, their reports, and the status with these in."""
    stage = stage_of(status)
    child = observed.children.get(stage)
    own = child if child is not None and child.owner is not None and child.owner.uid == job.metadata.uid else None
    there = observed.pods.get(stage, ())
    pods = tuple(pod for pod in there if own is not None and pod.job_uid == own.uid)
    reports: dict[str, Report] = {}
    for pod in pods:
        heard = observed.reports.get(pod.uid)
        report = report_of(pod, heard, job.metadata.uid or "")
        if report is not None:
            reports[pod.uid] = report
            at = heard.at if heard else pod.ended or timestamp(now)
            status = retold(status, pod, report, at, job.spec.checkpointing.n_checkpoints)
    tally = count(job, status, stage, pods, reports, timestamp(now))
    status = _with_tally(status, tally)
    return Look(job, stage, status, runtime_of(status.resolved or Resolved()), own, child, pods, there, reports, tally)


def _follow(look: Look, observed: Observed, settings: Settings, now: datetime) -> Plan:
    """A started job: end it, stop it, make its child, or say how it is."""
    if look.own is not None and look.own.complete:
        return _data_ready(look, now) if look.stage is Stage.PREPARE else _final(look, outcome.complete(look), now)
    if look.own is not None and look.own.failed:
        return _final(look, outcome.failed(look, *outcome.cause(look)), now)
    if (stop := outcome.stop(look)) is not None:
        return _stopped(look, stop, now)
    if look.own is None and look.child is not None:
        return _occupied(look, look.child, settings, now)
    if look.own is None:
        return _create(look, now)
    return _says(look, outcome.under_way(look), now, Plan(look.status))


def _data_ready(look: Look, now: datetime) -> Plan:
    """The data is prepared: only said now; the next look makes the train Job."""
    says = outcome.data_ready(look)
    return _says(look, says, now, Plan(look.status, look_again_after=0.0))


def _stopped(look: Look, stop: tuple[Reason, str], now: datetime) -> Plan:
    """Suspend the child, which saves and frees its pods; when none is left, the job is final."""
    busy = any(pod.ended is None for pod in look.there)
    if look.own is None or (look.own.suspended and look.own.halted and not busy):
        return _final(look, outcome.failed(look, *stop), now) if not busy else _wait(look, now)
    suspend = () if look.own.suspended else (look.own,)
    return _says(look, outcome.stopping(look), now, Plan(look.status, suspend=suspend, look_again_after=SOON))


def _wait(look: Look, now: datetime) -> Plan:
    return _says(look, outcome.stopping(look), now, Plan(look.status, look_again_after=SOON))


def _occupied(look: Look, child: ChildJob, settings: Settings, now: datetime) -> Plan:
    """Another's Job has the name: wait for it if it is going, else say so; never adopt it, never delete it."""
    if outcome.leftover(look.job, child):
        return _says(look, outcome.waiting_for(look, child), now, Plan(look.status, look_again_after=SOON))
    plan = Plan(look.status, look_again_after=settings.poll_period_seconds)
    return _says(look, outcome.name_conflict(look, child), now, plan)


def _create(look: Look, now: datetime) -> Plan:
    """Make the stage's child, unless pods of a vanished one still write."""
    if any(pod.ended is None for pod in look.there):
        return _says(look, outcome.waiting_for_pods(look), now, Plan(look.status, look_again_after=SOON))
    status, resolved = look.status, look.status.resolved or Resolved()
    config = trainer_config(look.job, look.runtime, resolved, status.output_name or "")
    manifest = child_manifest(look.job, look.stage, look.runtime, config)
    return _says(look, outcome.created(look), now, Plan(status, create=(manifest,), look_again_after=SOON))


def _final(look: Look, says: list[Say], now: datetime) -> Plan:
    """The last word about a job: nothing changes any more."""
    limit = look.job.spec.backoff_limit
    ended = {"completion_time": timestamp(now), "restarts": min(look.status.restarts, limit)}
    look = replace(look, status=look.status.model_copy(update=ended))
    return _says(look, says, now, Plan(look.status))


def _cancelled_before_start(job: FineTuneJob, now: datetime) -> Plan:
    status = (job.status or JobStatus()).model_copy(update={"completion_time": timestamp(now)})
    says = outcome.failure_says(Reason.CANCELLED, "cancelled before it started")
    return with_says(job, job.status or JobStatus(), status, says, now, Plan(status))


def _says(look: Look, says: list[Say], now: datetime, plan: Plan) -> Plan:
    events = [Event("Warning", a.reason or "PodEnded", outcome.end_sentence(look, a)) for a in look.tally.ended]
    old = look.job.status or JobStatus()
    return with_says(look.job, old, look.status, says, now, plan, *events)


def _with_tally(status: JobStatus, tally: Tally) -> JobStatus:
    return status.model_copy(
        update={"attempts": tally.attempts, "restarts": tally.restarts, "disruptions": tally.disruptions}
    )


def refused_child(job: FineTuneJob, plan: Plan, refusal: str, settings: Settings, now: datetime) -> Plan:
    """`plan` after the API server has refused a child: the status says so instead of pretending.

    Args:
        refusal: `<kind> <name>: <the API server's sentence>`.
    """
    stage = stage_of(plan.status)
    sentence = f"the API server refused {refusal}"
    kind = ConditionType.DATA_READY if stage is Stage.PREPARE else ConditionType.RUNNING
    says = [Say(kind, False, sentence, Reason.PENDING)]
    old, event = job.status or JobStatus(), Event("Warning", "ChildRefused", sentence)
    told = any(c.message == sentence for c in old.conditions)
    again = replace(plan, create=(), look_again_after=settings.poll_period_seconds)
    return with_says(job, old, plan.status, says, now, again, *(() if told else (event,)))
