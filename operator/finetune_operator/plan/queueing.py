"""Jobs that wait in a queue of Kueue's: what their children bear, what a waiting one says, who may stop it and how.

Kueue owns spec.suspend of a batch Job in a queue: it would undo what anybody else writes there. So such a Job is made
suspended, and from then on its Workload's spec.active holds it or lets it go on. A Job for which Kueue has made no
Workload cannot be held so: it is taken out of its queue instead, or Kueue might start it long after it was cancelled.

A preemption is Kueue's to decide and nobody's failure. What tells it from other ends is the Job: while it is suspended
it has no business running a pod, and when it goes on, its status.startTime begins anew.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

from finetune_api import names
from finetune_api.job import FineTuneJob
from finetune_api.status import Reason
from finetune_operator.plan.state import ChildJob, Manifest, Pod, Refusal, Waiting, Workload
from finetune_operator.settings import Settings

PREEMPTED = "PreemptedInQueue"
"""Stands where a preemption by the scheduler has the reason of its DisruptionTarget condition."""
CLOCKS = timedelta(seconds=2)
"""How much younger than its Job's start a pod of that start may not be: both are told in whole seconds."""
PART_OF_WAIT, LONGEST_LOOK = 0.1, 600.0
"""A waiting job is looked at after each tenth of its wait, at least every ten minutes: the Job itself tells when Kueue
lets it start, so that all a look can bring is another sentence."""


def refusal(job: FineTuneJob, settings: Settings) -> Refusal | None:
    """Why a job with a queue cannot start here: without rights on Workloads its stop would be undone."""
    queue = job.metadata.labels.get(names.QUEUE_LABEL)
    if not queue or settings.kueue:
        return None
    message = (
        f"metadata.labels: {names.QUEUE_LABEL} is {queue}, but this operator may not use Kueue:"
        " set its chart value settings.kueue to true, or remove the label"
    )
    return Refusal(Reason.INVALID_SPEC, message)


def labels_of_queue(job: FineTuneJob, settings: Settings) -> dict[str, str]:
    """What of the job's labels its children take on; empty for a job without a queue."""
    labels = job.metadata.labels
    if not settings.kueue or not labels.get(names.QUEUE_LABEL):
        return {}
    return {key: labels[key] for key in (names.QUEUE_LABEL, names.PRIORITY_LABEL) if labels.get(key)}


def in_queue(manifest: Manifest, labels: dict[str, str]) -> Manifest:
    """The child Job as it is made for a queue: suspended, or its pods might start before Kueue has seen it."""
    if not labels:
        return manifest
    metadata = {**manifest["metadata"], "labels": {**manifest["metadata"]["labels"], **labels}}
    return {**manifest, "metadata": metadata, "spec": {**manifest["spec"], "suspend": True}}


def waiting(child: ChildJob, namespace: str, settings: Settings) -> Waiting | None:
    """Why a child waits in its queue; None for one that does not."""
    if child.queue is None or not child.suspended:
        return None
    if child.workload is not None:
        return Waiting(Reason.QUEUED, f"in queue {child.queue}: {_sentence(child.workload, namespace)}")
    if not settings.kueue:
        why = "this operator may not read why: set its chart value settings.kueue to true"
    else:
        why = "Kueue has made no Workload for it yet"
        why += f"; if this lasts, see kubectl describe job {child.name} -n {namespace}, whether Kueue runs, and whether"
        why += f" the WorkloadPriorityClass of the label {names.PRIORITY_LABEL} exists"
    return Waiting(Reason.QUEUED, f"Job {child.name} is in queue {child.queue}, and {why}")


def look_again(child: ChildJob, settings: Settings, now: datetime) -> float:
    """Seconds until the next look at a child that waits in its queue."""
    waited = (now - _moment(child.suspended_since)).total_seconds() if child.suspended_since else 0.0
    return max(settings.poll_period_seconds, min(PART_OF_WAIT * waited, LONGEST_LOOK))


def held(child: ChildJob, mark: str) -> ChildJob:
    """The child in a queue as it is when this operator stops it."""
    if child.workload is not None:
        return replace(child, mark=mark, workload=replace(child.workload, active=False))
    return replace(child, mark=mark, suspended=True, queue=None, parked=child.queue)


def released(child: ChildJob) -> ChildJob:
    """The same when it may go on: Kueue decides when."""
    if child.queue is None:
        return replace(child, mark=None, queue=child.parked, parked=None)
    again = replace(child.workload, active=True) if child.workload is not None else None
    return replace(child, mark=None, workload=again)


def displaced(pods: tuple[Pod, ...], child: ChildJob | None) -> tuple[Pod, ...]:
    """`pods` of `child`, those that ended because Kueue took their place marked as disrupted."""
    if child is None or child.queue is None or child.mark is not None:
        return pods
    return tuple(replace(pod, disrupted=PREEMPTED) if _displaced(pod, child) else pod for pod in pods)


def _displaced(pod: Pod, child: ChildJob) -> bool:
    if pod.ended is None or pod.disrupted is not None:
        return False
    return child.suspended or (child.started is not None and _moment(pod.created) + CLOCKS < _moment(child.started))


def _sentence(workload: Workload, namespace: str) -> str:
    if workload.active:
        return workload.said
    which = f"workload {workload.name} -n {namespace}"
    activate = f"""kubectl patch {which} --type merge -p '{{"spec":{{"active":true}}}}'"""
    return f"{workload.said}; its Workload is deactivated, and not by this operator: {activate} lets it go on"


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text)
