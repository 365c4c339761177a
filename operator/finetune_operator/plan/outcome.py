"""What the conditions say at each point of a started job: one function per situation, in the order of a job's life."""

from __future__ import annotations

from finetune_api import names
from finetune_api.job import FineTuneJob
from finetune_api.report import EarlyStop, Report
from finetune_api.status import Attempt, AttemptReason, ConditionType, JobStatus, Reason
from finetune_api.trainer import Stage
from finetune_operator.plan.conditions import Say
from finetune_operator.plan.failure import announced_reason, cause_of, end_of
from finetune_operator.plan.look import Look
from finetune_operator.plan.objects import child_name
from finetune_operator.plan.starting import LEFT_OVER, stage_condition, waiting
from finetune_operator.plan.state import Beside, ChildJob, Event, Pod, Waiting
from finetune_operator.plan.stop import Stop, given_up, sentence, wanted

ENDS = "ends: "
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
    last = look.report(look.newest)
    if last is not None and last.finished:
        running, published = _trained(look, last)
    elif (written := look.status.condition(ConditionType.PUBLISHED)) is not None and look.published:
        running, published = _ended_before(look), Say(ConditionType.PUBLISHED, True, written.message)
    else:
        return _unreported(look)
    if running.reason is Reason.EARLY_STOPPED:
        message, reason = f"{running.message}; {published.message}", Reason.EARLY_STOPPED
    else:
        message, reason = published.message, Reason.SUCCEEDED
    return [_accepted(look), running, published, Say(ConditionType.COMPLETE, True, message, reason)]


def _trained(look: Look, last: Report) -> tuple[Say, Say]:
    """What the final report of a training makes of Running and Published."""
    output = look.status.output
    where = output.adapter_uri or output.model_uri if output else None
    published = Say(ConditionType.PUBLISHED, True, f"published at {where}" if where else "everything is published")
    if last.early_stop is None:
        return ENDED, published
    early = _early(last.early_stop, look.status)
    return Say(ConditionType.RUNNING, False, early, Reason.EARLY_STOPPED), published


def _ended_before(look: Look) -> Say:
    """Running, as it was written when the pod told of its end."""
    said = look.status.condition(ConditionType.RUNNING)
    if said is None or said.reason != Reason.EARLY_STOPPED:
        return ENDED
    return Say(ConditionType.RUNNING, False, said.message, Reason.EARLY_STOPPED)


def _unreported(look: Look) -> list[Say]:
    """The Job controller calls it a success, and nothing is known of how it ended."""
    message = "exit code 0, but no final report was received; see metrics.jsonl at the output"
    published = Say(ConditionType.PUBLISHED, True, message)
    return [_accepted(look), ENDED, published, Say(ConditionType.COMPLETE, True, message, Reason.NO_FINAL_REPORT)]


def _early(stop: EarlyStop, status: JobStatus) -> str:
    total = status.progress.total_steps if status.progress else None
    end = f"step {stop.step} of {total}" if total else f"step {stop.step}"
    waited = f"{stop.evaluations} evaluation{'s' if stop.evaluations > 1 else ''}"
    best = "none was finite" if stop.best_value is None else f"best {stop.best_value:g} at step {stop.best_step}"
    return f"stopped early after {end}: {stop.metric} did not improve in {waited}, {best}"


def cause(look: Look) -> tuple[Reason, str]:
    """Why the stage's Job failed: from our own stop, its last failed pod, or what the Job controller says."""
    stop = wanted(look) if look.own and look.own.suspended else given_up(look)
    if stop is not None and stop.final:
        return stop.reason, sentence(look, stop)
    fallback = look.own.failed_message if look.own and look.own.failed_message else "the Job failed"
    last = look.status.attempts[-1] if look.status.attempts else None
    if last is not None and (reason := announced_reason(last)) is not None:
        return reason, _announced(look, last) or fallback
    pod = next((p for p in reversed(look.pods) if p.ended and p.exit_code != 0), None)
    return cause_of(pod, look.report(pod), fallback)


def _announced(look: Look, attempt: Attempt) -> str:
    """The sentence with which a pod that is gone had announced its end, if it still stands in the status."""
    said = look.status.condition(stage_condition(look))
    _, _, sentence = (said.message if said else "").partition(f"pod {attempt.pod} {ENDS}")
    return sentence


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
    if look.published and (last := look.report(pod)) is not None and last.finished:
        return [_accepted(look), *_trained(look, last)]
    message = f"stopping: pod {pod.name} saves its state and leaves"
    if look.stage is Stage.PREPARE:
        return _not_yet(look, Waiting(Reason.CHECKING, message))
    return [_accepted(look), Say(ConditionType.RUNNING, True, message), *_unpublished(look)]


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


def end_event(look: Look, attempt: Attempt) -> Event:
    """What to tell of an attempt that has ended without success: nothing to worry about if it was our doing."""
    kind = "Normal" if attempt.reason == AttemptReason.HALTED else "Warning"
    return Event(kind, attempt.reason or "PodEnded", _end_sentence(look, attempt))


def _end_sentence(look: Look, attempt: Attempt) -> str:
    pod = next((p for p in look.pods if p.name == attempt.pod), None)
    if pod is None:
        return f"pod {attempt.pod} is gone, and nobody saw how it ended"
    sentence = end_of(pod, look.report(pod))
    return sentence if pod.name in sentence else f"pod {pod.name}: {sentence}"


def _at_work(look: Look, pod: Pod) -> list[Say]:
    report = look.report(pod)
    failure = report.failure if report is not None and report.finished else None
    ends = f"pod {pod.name} {ENDS}{failure.sentence}" if failure is not None else None
    if look.stage is Stage.PREPARE:
        return _not_yet(look, Waiting(Reason.CHECKING, ends or f"pod {pod.name} checks the data"))
    if report is not None and report.finished and failure is None:
        return [_accepted(look), *_trained(look, report)]
    running = Say(ConditionType.RUNNING, True, ends or f"pod {pod.name} trains")
    if report is not None and report.publishing and failure is None:
        uploading = Say(ConditionType.PUBLISHED, False, f"pod {pod.name} writes the results", Reason.UPLOADING)
        return [_accepted(look), running, uploading]
    return [_accepted(look), running, *_unpublished(look)]


def _not_yet(look: Look, why: Waiting) -> list[Say]:
    """The stage does not run: said on the condition that it would make true."""
    if look.published and not look.busy:
        return [_accepted(look)]  # what the last pod has told stands
    if look.stage is Stage.TRAIN:
        return [_accepted(look), Say(ConditionType.RUNNING, False, why.message, why.reason), *_unpublished(look)]
    return [
        _accepted(look),
        Say(ConditionType.DATA_READY, False, why.message, why.reason),
        Say(ConditionType.RUNNING, False, "waits for the data", Reason.PENDING),
    ]


def _unpublished(look: Look) -> list[Say]:
    if look.published:
        return []
    return [Say(ConditionType.PUBLISHED, False, "follows the training", Reason.PENDING)]


def _accepted(look: Look) -> Say:
    name = look.status.resolved.runtime.name if look.status.resolved and look.status.resolved.runtime else ""
    return Say(ConditionType.ACCEPTED, True, f"runs on FineTuneRuntime {name}")
