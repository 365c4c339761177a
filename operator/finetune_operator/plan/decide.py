"""What to do about one FineTuneJob: the whole story, as a pure function of what was seen."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from finetune_api import names
from finetune_api.job import FineTuneJob
from finetune_api.status import ConditionStatus, ConditionType, JobStatus, Reason, Resolved
from finetune_api.trainer import Stage
from finetune_operator.plan import outcome, queueing
from finetune_operator.plan import stop as stopping
from finetune_operator.plan.admit import admit, with_says
from finetune_operator.plan.claims import claim_template
from finetune_operator.plan.conditions import Say, acknowledged, no_more_suspended, transitions
from finetune_operator.plan.lifetime import kept_for, stopped_running
from finetune_operator.plan.look import Look, look_at, stage_of
from finetune_operator.plan.network import beside
from finetune_operator.plan.objects import child_manifest
from finetune_operator.plan.silence import staleness
from finetune_operator.plan.starting import REFUSED
from finetune_operator.plan.state import Beside, ChildJob, Event, Manifest, Observed, Plan, timestamp
from finetune_operator.plan.stop import Stop
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
        return _after_the_end(job, status, now)
    if status.start_time is None:
        return _cancelled_before_start(job, now) if job.spec.cancel else admit(job, observed, settings, now)
    return _follow(look_at(job, status, observed, now), settings)


def ours(manifest: Manifest) -> bool:
    """Whether this operator manages the job. Another's is not looked at, whatever it holds."""
    return bool((manifest.get("spec") or {}).get("managedBy", names.OPERATOR) == names.OPERATOR)


def _after_the_end(job: FineTuneJob, status: JobStatus, now: datetime) -> Plan:
    """Nothing changes any more; only, in time, the record goes."""
    left = kept_for(job, status, now)
    plan = Plan(status=acknowledged(status, job.metadata.generation), look_again_after=left)
    return replace(plan, delete=True, look_again_after=None) if left == 0 else plan


def _follow(look: Look, settings: Settings) -> Plan:
    """A started job: end it, stop it, make its child, let it go on, or say how it is."""
    if look.done:
        return _data_ready(look) if look.stage is Stage.PREPARE else _final(look, outcome.complete(look))
    if look.own is not None and look.own.failed:
        return _final(look, outcome.failed(look, *outcome.cause(look)))
    if (stop := stopping.wanted(look)) is not None:
        return _stopped(look, stop)
    if look.own is None and look.taken is not None:
        return _occupied(look, look.taken, settings)
    if look.own is None:
        return _create(look, settings)
    if look.own.mark is not None:
        return _resumed(look, look.own)
    return _under_way(look, look.own, settings)


def _data_ready(look: Look) -> Plan:
    """The data is prepared: only said now; the next look makes the train Job."""
    return _says(look, outcome.data_ready(look), Plan(look.status, look_again_after=0.0))


def _stopped(look: Look, stop: Stop) -> Plan:
    """Hold the child, whose pods save and leave; when none is left, the job is suspended or final."""
    if not stopping.over(look):
        hold = (stopping.held(look.own, stop),) if look.own is not None and not look.own.held else ()
        return _says(look, outcome.stopping(look), Plan(look.status, suspend=hold, look_again_after=SOON))
    if stop.final:
        return _final(look, outcome.failed(look, stop.reason, stopping.sentence(look, stop)))
    return _says(look, outcome.suspended(look, stop), Plan(look.status))


def _resumed(look: Look, own: ChildJob) -> Plan:
    """Let a held child go on, once its pods have ended and that is written down: only while it is held is it known
    that they ended by our doing."""
    if own.held and not stopping.over(look):
        return _says(look, outcome.stopping(look), Plan(look.status, look_again_after=SOON))
    written = look.job.status is not None and look.job.status.attempts == look.status.attempts
    plan = Plan(look.status, resume=(stopping.released(own),), look_again_after=SOON)
    return _says(look, outcome.resuming(look), plan if written else Plan(look.status, look_again_after=0.0))


def _under_way(look: Look, own: ChildJob, settings: Settings) -> Plan:
    """Say how it is; what stands beside the Job and has vanished is made again."""
    queued = queueing.waiting(own, look.job.metadata.namespace or "", settings)
    conflict = outcome.name_conflict(look.taken) if look.taken and not outcome.leftover(look.job, look.taken) else []
    going = any(found.being_deleted for found in look.beside)
    again = queueing.look_again(own, settings, look.now) if queued else stopping.due(look)
    plan = Plan(look.status, create=_missing(look, settings), look_again_after=SOON if going else again)
    return _says(look, [*(outcome.queued(look, queued) if queued else outcome.under_way(look)), *conflict], plan)


def _missing(look: Look, settings: Settings) -> tuple[Manifest, ...]:
    """What has to stand beside the Job and does not."""
    there = {(found.kind, found.name) for found in look.beside}
    wanted = beside(look.job, look.stage, look.runtime, settings)
    return tuple(m for m in wanted if (m["kind"], m["metadata"]["name"]) not in there)


def _occupied(look: Look, child: ChildJob | Beside, settings: Settings) -> Plan:
    """Another's object has the name: wait for it if it is going, else say so; never adopt it, never delete it."""
    if outcome.leftover(look.job, child):
        return _says(look, outcome.waiting_for(look, child), Plan(look.status, look_again_after=SOON))
    plan = Plan(look.status, look_again_after=settings.poll_period_seconds)
    return _says(look, [*outcome.cannot_be_made(look), *outcome.name_conflict(child)], plan)


def _create(look: Look, settings: Settings) -> Plan:
    """Make the stage's child, and before it what stands beside it, unless pods of a vanished one still write."""
    if look.busy:
        return _says(look, outcome.waiting_for_pods(look), Plan(look.status, look_again_after=SOON))
    status, resolved = look.status, look.status.resolved or Resolved()
    config = trainer_config(look.job, look.runtime, resolved, status.output_name or "")
    labels = queueing.labels_of_queue(look.job, settings)
    manifest = queueing.in_queue(child_manifest(look.job, look.stage, look.runtime, config), labels)
    claim = claim_template(look.job, look.runtime, settings) if look.stage is Stage.PREPARE else None
    claims = (claim,) if claim is not None and claim["metadata"]["name"] not in look.claims else ()
    made = (*claims, *_missing(look, settings), manifest)
    return _says(look, outcome.created(look), Plan(status, create=made, look_again_after=SOON))


def _final(look: Look, says: list[Say]) -> Plan:
    """The last word about a job: nothing changes any more."""
    limit = look.job.spec.backoff_limit
    ended = {"completion_time": timestamp(look.now), "restarts": min(look.status.restarts, limit)}
    status = stopped_running(look.status.model_copy(update=ended), timestamp(look.now))
    again = kept_for(look.job, status, look.now)
    return _says(replace(look, status=status), says, Plan(status, look_again_after=again))


def _cancelled_before_start(job: FineTuneJob, now: datetime) -> Plan:
    status = (job.status or JobStatus()).model_copy(update={"completion_time": timestamp(now)})
    says = outcome.failure_says(Reason.CANCELLED, "cancelled before it started")
    says = [*no_more_suspended(status, says), *says]
    plan = Plan(status, look_again_after=kept_for(job, status, now))
    return with_says(job, job.status or JobStatus(), status, says, now, plan)


def _says(look: Look, says: list[Say], plan: Plan) -> Plan:
    events = [outcome.end_event(attempt) for attempt in look.tally.ended]
    old = look.job.status or JobStatus()
    says = [*no_more_suspended(old, says), *staleness(look), *says]
    return with_says(look.job, old, look.status, says, look.now, plan, *events)


def refused_child(job: FineTuneJob, plan: Plan, refusal: str, settings: Settings, now: datetime) -> Plan:
    """`plan` after the API server has refused a child or its stop: the status says so instead of pretending.

    Args:
        refusal: `<kind> <name>: <the API server's sentence>`.
    """
    stage = stage_of(plan.status)
    sentence = f"{REFUSED} {refusal}"
    kind = ConditionType.DATA_READY if stage is Stage.PREPARE else ConditionType.RUNNING
    says = [_refused(plan, kind, sentence)]
    old, event = job.status or JobStatus(), Event("Warning", "ChildRefused", sentence)
    told = any(f"{sentence.partition(': ')[0]}: " in c.message for c in old.conditions)
    again = replace(plan, create=(), look_again_after=settings.poll_period_seconds)
    ends = [known for known in plan.events if known not in transitions(old, plan.status)]
    return with_says(job, old, plan.status, says, now, again, *ends, *(() if told else (event,)))


def _refused(plan: Plan, kind: ConditionType, sentence: str) -> Say:
    """Without its Job a stage does not run; without what was to be made again beside the Job it may well."""
    said = plan.status.condition(kind)
    if said is None or any(manifest["kind"] == "Job" for manifest in plan.create):
        return Say(kind, False, sentence, Reason.PENDING)
    holds = said.status is ConditionStatus.TRUE
    return Say(kind, holds, f"{said.message}; {sentence}", None if holds else Reason(said.reason))
