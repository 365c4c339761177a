"""What the conditions say at each point of a started job: one function per situation, in the order of a job's life."""

from __future__ import annotations

from dataclasses import dataclass

from finetune_api import names
from finetune_api.job import FineTuneJob
from finetune_api.report import EarlyStop, Report
from finetune_api.runtime import RuntimeSpec
from finetune_api.status import Attempt, ConditionType, JobStatus, Reason
from finetune_api.trainer import Stage
from finetune_operator.plan.attempts import MAX_FREE, Tally, out_of_memory_twice
from finetune_operator.plan.conditions import Say
from finetune_operator.plan.failure import cancelled, cause_of, end_of, follow_up, killed_for_memory
from finetune_operator.plan.objects import child_name
from finetune_operator.plan.size import output_uri
from finetune_operator.plan.state import ChildJob, Pod, Waiting


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
    """Pods of `own`, oldest first."""
    there: tuple[Pod, ...]
    """Pods with this job's labels, of whatever Job."""
    reports: dict[str, Report]
    """By pod uid."""
    tally: Tally

    @property
    def newest(self) -> Pod | None:
        """The pod at work, or the last that was."""
        return self.pods[-1] if self.pods else None

    def report(self, pod: Pod | None) -> Report | None:
        """What that pod said."""
        return self.reports.get(pod.uid) if pod is not None else None


def created(look: Look) -> list[Say]:
    """The stage's Job is being made."""
    return _not_yet(look, Waiting(Reason.INITIALIZING, f"Job {child_name(look.job, look.stage)} is being made"))


def under_way(look: Look) -> list[Say]:
    """The stage's Job is at work, or about to be."""
    pod = look.newest
    if pod is not None and pod.running:
        return _at_work(look, pod)
    return _not_yet(look, _waiting(look, pod))


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
    where = look.status.output.adapter_uri or look.status.output.model_uri if look.status.output else None
    published = f"published at {where}" if where else "everything is published"
    reason, message = Reason.SUCCEEDED, published
    if last is None or not last.finished:
        message = published = "exit code 0, but no final report was received; see metrics.jsonl at the output"
        reason = Reason.NO_FINAL_REPORT
    elif last.early_stop is not None:
        reason, message = Reason.EARLY_STOPPED, f"{_early(last.early_stop, look.status)}; {published}"
    return [
        Say(ConditionType.RUNNING, False, "training has ended", Reason.FINISHED),
        Say(ConditionType.PUBLISHED, True, published),
        Say(ConditionType.COMPLETE, True, message, reason),
    ]


def _early(stop: EarlyStop, status: JobStatus) -> str:
    total = status.progress.total_steps if status.progress else None
    end = f"step {stop.step} of {total}" if total else f"step {stop.step}"
    waited = f"{stop.evaluations} evaluation{'s' if stop.evaluations > 1 else ''}"
    best = "none was finite" if stop.best_value is None else f"best {stop.best_value:g} at step {stop.best_step}"
    return f"stopped early after {end}: {stop.metric} did not improve in {waited}, {best}"


def cause(look: Look) -> tuple[Reason, str]:
    """Why the stage's Job failed: from its last failed pod, else from what the Job controller says."""
    stopped = stop(look) if look.own and look.own.suspended else _give_up(look)
    if stopped is not None:
        return stopped
    pod = next((p for p in reversed(look.pods) if p.ended and p.exit_code != 0), None)
    fallback = look.own.failed_message if look.own and look.own.failed_message else "the Job failed"
    return cause_of(pod, look.report(pod), fallback)


def stop(look: Look) -> tuple[Reason, str] | None:
    """Why the operator ends the job by itself; None = it does not."""
    if look.job.spec.cancel:
        return Reason.CANCELLED, cancelled(look.job, look.status, _private_folder(look))
    return _give_up(look)


def _give_up(look: Look) -> tuple[Reason, str] | None:
    if out_of_memory_twice(look.tally, look.job, look.stage):
        return Reason.OUT_OF_MEMORY, killed_for_memory(look.job, look.runtime, look.status)
    if look.status.restarts > look.job.spec.backoff_limit:
        return _last_end(look)
    if look.status.disruptions >= MAX_FREE:
        message = f"stopped {look.status.disruptions} times from outside: the node is not fit for this job"
        return Reason.BACKOFF_LIMIT_EXCEEDED, message
    return None


def failed(look: Look, reason: Reason, message: str) -> list[Say]:
    """The job is final, with its cause."""
    says = failure_says(reason, message)
    if look.stage is Stage.PREPARE:
        why = Reason.OUTPUT_NOT_WRITABLE if reason is Reason.PUBLISH_FAILED else reason
        says.append(Say(ConditionType.DATA_READY, False, message, why))
    elif reason in (Reason.PUBLISH_FAILED, Reason.STORAGE_FULL):
        says.append(Say(ConditionType.PUBLISHED, False, message, Reason.UPLOAD_FAILED))
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
    """The stage's Job is suspended; its pods save and leave."""
    return _not_yet(look, Waiting(Reason.FINISHED, "stopping: the pod saves its state and leaves"))


def leftover(job: FineTuneJob, child: ChildJob) -> bool:
    """Whether a foreign Job is on its way out: it is being deleted, or its owner was this job's predecessor."""
    owner = child.owner
    predecessor = owner is not None and owner.kind == names.JOB_KIND and owner.name == job.metadata.name
    return child.being_deleted or predecessor


def waiting_for(look: Look, child: ChildJob) -> list[Say]:
    """An earlier Job of the same name is being deleted."""
    return _not_yet(look, Waiting(Reason.PENDING, f"waits until an earlier Job {child.name} is gone"))


def waiting_for_pods(look: Look) -> list[Say]:
    """The Job has vanished, its pods have not: two must never write at once."""
    pods = ", ".join(pod.name for pod in look.there if pod.ended is None)
    return _not_yet(look, Waiting(Reason.PENDING, f"waits until {pods} has ended"))


def name_conflict(look: Look, child: ChildJob) -> list[Say]:
    """A Job that is not ours has the name of our child."""
    whose = f"is controlled by {child.owner.kind} {child.owner.name}" if child.owner else "has no controller"
    message = (
        f"Job {child.name} exists and {whose}, so this job's own cannot be made:"
        " delete that Job, or create the FineTuneJob under another name"
    )
    return [Say(ConditionType.ACCEPTED, False, message, Reason.NAME_CONFLICT)]


def end_sentence(look: Look, attempt: Attempt) -> str:
    """How an attempt ended, for an event."""
    pod = next((p for p in look.pods if p.name == attempt.pod), None)
    if pod is None:
        return f"pod {attempt.pod} is gone, and nobody saw how it ended"
    sentence = end_of(pod, look.report(pod))
    return sentence if pod.name in sentence else f"pod {pod.name}: {sentence}"


def _at_work(look: Look, pod: Pod) -> list[Say]:
    if look.stage is Stage.PREPARE:
        return _not_yet(look, Waiting(Reason.CHECKING, f"pod {pod.name} checks the data"))
    report = look.report(pod)
    publishing = report is not None and report.publishing
    published = (
        Say(ConditionType.PUBLISHED, False, f"pod {pod.name} writes the results", Reason.UPLOADING)
        if publishing
        else _unpublished()
    )
    return [_accepted(look), Say(ConditionType.RUNNING, True, f"pod {pod.name} trains"), published]


def _not_yet(look: Look, why: Waiting) -> list[Say]:
    """The stage does not run: said on the condition that it would make true."""
    if look.stage is Stage.TRAIN:
        return [_accepted(look), Say(ConditionType.RUNNING, False, why.message, why.reason), _unpublished()]
    return [
        _accepted(look),
        Say(ConditionType.DATA_READY, False, why.message, why.reason),
        Say(ConditionType.RUNNING, False, "waits for the data", Reason.PENDING),
    ]


def _unpublished() -> Say:
    return Say(ConditionType.PUBLISHED, False, "follows the training", Reason.PENDING)


def _waiting(look: Look, pod: Pod | None) -> Waiting:
    if pod is None:
        name = child_name(look.job, look.stage)
        message = (
            f"Job {name} has no pod yet; if this lasts, the API server refuses its pods (a quota, a policy):"
            f" kubectl describe job {name} tells why"
        )
        return Waiting(Reason.INITIALIZING, message)
    if pod.ended is not None:
        return follow_up(pod, look.report(pod))
    return pod.waiting or Waiting(Reason.INITIALIZING, f"pod {pod.name} is being deleted; a new pod follows")


def _accepted(look: Look) -> Say:
    name = look.status.resolved.runtime.name if look.status.resolved and look.status.resolved.runtime else ""
    return Say(ConditionType.ACCEPTED, True, f"runs on FineTuneRuntime {name}")


def _last_end(look: Look) -> tuple[Reason, str]:
    pod = next((p for p in reversed(look.pods) if p.ended and p.exit_code != 0), None)
    fallback = f"more than {look.job.spec.backoff_limit} failures"
    return cause_of(pod, look.report(pod), fallback)


def _private_folder(look: Look) -> str | None:
    target = output_uri(look.job, look.runtime)
    return f"{target}/{names.PRIVATE_DIRECTORY}/{look.job.metadata.uid}" if target else None
