"""What the conditions say at each point of a started job: one function per situation, in the order of a job's life."""

from __future__ import annotations

from finetune_api import names
from finetune_api.job import FineTuneJob
from finetune_api.status import Attempt, AttemptReason, ConditionType, Reason
from finetune_api.trainer import Stage
from finetune_operator.plan.attempts import last_failure
from finetune_operator.plan.conditions import Say
from finetune_operator.plan.failure import cause_of
from finetune_operator.plan.look import Look
from finetune_operator.plan.objects import child_name
from finetune_operator.plan.starting import LEFT_OVER, waiting
from finetune_operator.plan.state import Beside, ChildJob, Event, Pod, Waiting
from finetune_operator.plan.stop import Stop, given_up, sentence, wanted

ENDED = Say(ConditionType.RUNNING, False, "training has ended", Reason.FINISHED)


def created(look: Look) -> list[Say]:
    """The stage's Job is being made."""
    return _not_yet(look, Waiting(Reason.INITIALIZING, f"Job {child_name(look.job, look.stage)} is being made"))


def under_way(look: Look) -> list[Say]:
    """The stage's Job is at work, or about to be."""
    pod = look.newest
    if pod is not None and pod.running:
        return _at_work(look, pod)
    return _not_yet(look, waiting(look))


def queued(look: Look, why: Waiting) -> list[Say]:
    """The stage's Job waits in its queue."""
    return _not_yet(look, why)


def data_ready(look: Look) -> list[Say]:
    """The prepare Job has ended well."""
    data, steps = look.status.data, look.status.resolved.total_steps if look.status.resolved else None
    rows = f"{data.rows} rows" if data else "prepared; no report was received"
    message = f"{rows}, {steps} optimiser steps" if steps else rows
    return [
        _accepted(look),
        Say(ConditionType.DATA_READY, True, message),
        Say(ConditionType.RUNNING, False, "the train Job is made next", Reason.PENDING),
    ]


def complete(look: Look) -> list[Say]:
    """The train Job has ended well: everything is published, and the job is final."""
    early = next((a for a in reversed(look.status.attempts) if a.reason == AttemptReason.EARLY_STOPPED), None)
    published = _publication(look)
    message, reason = published.message, Reason.SUCCEEDED
    if not look.published:
        message = "exit code 0, but no final report was received; see metrics.jsonl at the output"
        published, reason = Say(ConditionType.PUBLISHED, True, message), Reason.NO_FINAL_REPORT
    elif early is not None:
        message, reason = f"{early.message}; {message}", Reason.EARLY_STOPPED
    return [_accepted(look), ENDED, published, Say(ConditionType.COMPLETE, True, message, reason)]


def cause(look: Look) -> tuple[Reason, str]:
    """Why the stage's Job failed: from our own stop, its last failed pod, or what the Job controller says."""
    stop = wanted(look) if look.own and look.own.suspended else given_up(look)
    if stop is not None and stop.final:
        return stop.reason, sentence(look, stop)
    fallback = look.own.failed_message if look.own and look.own.failed_message else "the Job failed"
    return cause_of(last_failure(look.status.attempts, look.job, look.stage), fallback)


def failed(look: Look, reason: Reason, message: str) -> list[Say]:
    """The job is final, with its cause."""
    says = failure_says(reason, message)
    if look.stage is Stage.PREPARE:
        why = Reason.OUTPUT_NOT_WRITABLE if reason is Reason.PUBLISH_FAILED else reason
        says.append(Say(ConditionType.DATA_READY, False, message, why))
    elif reason in (Reason.PUBLISH_FAILED, Reason.STORAGE_FULL):
        says.append(Say(ConditionType.PUBLISHED, False, message, Reason.UPLOAD_FAILED))
    elif reason is Reason.START_TIMEOUT:
        says.append(Say(ConditionType.RUNNING, False, message, reason))
    return says


def failure_says(reason: Reason, message: str) -> list[Say]:
    """Failed, and its mirror for readers of kstatus."""
    return [
        Say(ConditionType.RUNNING, False, "the job has ended", Reason.FINISHED),
        Say(ConditionType.PUBLISHED, False, "the job ended before", Reason.FINISHED),
        Say(ConditionType.FAILED, True, message, reason),
        Say(ConditionType.STALLED, True, message, reason),
    ]


def stopping(look: Look) -> list[Say]:
    """The stage's Job is held; its pods save and leave. A pod that still runs is said to."""
    waits = (pod.waiting for pod in look.busy if pod.waiting is not None)
    lost = next((why for why in waits if why.reason is Reason.NODE_LOST), None)
    if lost is not None:
        return _not_yet(look, Waiting(Reason.NODE_LOST, f"stopping: {lost.message}"))
    pod = next((pod for pod in look.busy if pod.started is not None), None)
    if pod is None:
        return _not_yet(look, Waiting(Reason.PENDING, "stopping: waits until no pod is left"))
    message = f"stopping: pod {pod.name} saves its state and leaves"
    if look.stage is Stage.PREPARE:
        return _not_yet(look, Waiting(Reason.CHECKING, message))
    return [_accepted(look), Say(ConditionType.RUNNING, True, message), _publication(look)]


def suspended(look: Look, stop: Stop) -> list[Say]:
    """No pod is left, and none will be until the user says so."""
    message = sentence(look, stop)
    waits = _not_yet(look, Waiting(Reason.SUSPENDED, message))
    return [*waits, Say(ConditionType.SUSPENDED, True, message, stop.reason)]


def resuming(look: Look) -> list[Say]:
    """The stage's Job may go on."""
    return _not_yet(look, Waiting(Reason.INITIALIZING, f"Job {child_name(look.job, look.stage)} goes on"))


def leftover(job: FineTuneJob, child: ChildJob | Beside) -> bool:
    """Whether a foreign object is on its way out: it is being deleted, or its owner was this job's predecessor."""
    owner = child.owner
    predecessor = owner is not None and owner.kind == names.JOB_KIND and owner.name == job.metadata.name
    return child.being_deleted or predecessor


def waiting_for(look: Look, child: ChildJob | Beside) -> list[Say]:
    """An earlier object of the same name is being deleted."""
    return _not_yet(look, Waiting(Reason.PENDING, f"{LEFT_OVER} {child.kind} {child.name} is gone"))


def waiting_for_pods(look: Look) -> list[Say]:
    """The Job has vanished, its pods have not: two must never write at once."""
    pods = ", ".join(pod.name for pod in look.there if pod.ended is None)
    return _not_yet(look, Waiting(Reason.PENDING, f"waits until {pods} has ended"))


def cannot_be_made(look: Look) -> list[Say]:
    """The stage's Job is not there, and may not be made."""
    name = child_name(look.job, look.stage)
    return _not_yet(look, Waiting(Reason.PENDING, f"Job {name} cannot be made: see the condition Accepted"))


def name_conflict(child: ChildJob | Beside) -> list[Say]:
    """An object that is not ours has the name of our child."""
    whose = f"is controlled by {child.owner.kind} {child.owner.name}" if child.owner else "has no controller"
    message = (
        f"{child.kind} {child.name} exists and {whose}, so this job's own cannot be made:"
        f" delete that {child.kind}, or create the FineTuneJob under another name"
    )
    return [Say(ConditionType.ACCEPTED, False, message, Reason.NAME_CONFLICT)]


def end_event(attempt: Attempt) -> Event:
    """What to tell of an attempt that has ended without success: nothing to worry about if it was our doing."""
    kind, said = "Normal" if attempt.reason == AttemptReason.HALTED else "Warning", attempt.message or ""
    told = said if attempt.pod in said else f"pod {attempt.pod}: {said}"
    return Event(kind, attempt.reason or "PodEnded", told)


def _at_work(look: Look, pod: Pod) -> list[Say]:
    if look.stage is Stage.PREPARE:
        return _not_yet(look, Waiting(Reason.CHECKING, f"pod {pod.name} checks the data"))
    report = look.report(pod)
    published = _publication(look)
    if report is not None and report.publishing and not look.published:
        published = Say(ConditionType.PUBLISHED, False, f"pod {pod.name} writes the results", Reason.UPLOADING)
    return [_accepted(look), Say(ConditionType.RUNNING, True, f"pod {pod.name} trains"), published]


def _not_yet(look: Look, why: Waiting) -> list[Say]:
    """The stage does not run: said on the condition that it would make true."""
    if look.stage is Stage.TRAIN:
        return [_accepted(look), Say(ConditionType.RUNNING, False, why.message, why.reason), _publication(look)]
    return [
        _accepted(look),
        Say(ConditionType.DATA_READY, False, why.message, why.reason),
        Say(ConditionType.RUNNING, False, "waits for the data", Reason.PENDING),
    ]


def _publication(look: Look) -> Say:
    """Published, as far as pods have told."""
    if not look.published:
        return Say(ConditionType.PUBLISHED, False, "follows the training", Reason.PENDING)
    output = look.status.output
    where = output.adapter_uri or output.model_uri if output else None
    return Say(ConditionType.PUBLISHED, True, f"published at {where}" if where else "everything is published")


def _accepted(look: Look) -> Say:
    name = look.status.resolved.runtime.name if look.status.resolved and look.status.resolved.runtime else ""
    return Say(ConditionType.ACCEPTED, True, f"runs on FineTuneRuntime {name}")
