"""What a stage waits for before its pods run, and for how long it may.

The time to start is that of an image, a node, a Secret, a quota: it rests while a queue or a person holds the Job, and
begins anew for each pod, so that a job which trained for days has all of it again after a node was lost.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from finetune_api.status import ConditionType, Reason
from finetune_api.trainer import Stage
from finetune_operator.plan.attempts import of_stage
from finetune_operator.plan.failure import follow_up
from finetune_operator.plan.look import Look
from finetune_operator.plan.objects import child_name
from finetune_operator.plan.state import ChildJob, Pod, Waiting, timestamp

REFUSED = "the API server refused"
LEFT_OVER = "waits until an earlier"
"""How the sentences begin of a Job that could not be made."""
BACK_OFF = timedelta(minutes=10)
"""The longest pause that the Job controller makes of itself between a failed pod and the next."""


def waiting(look: Look) -> Waiting:
    """Why no pod of the stage's Job runs."""
    name, pod = child_name(look.job, look.stage), look.newest
    if look.own is not None and look.own.suspended and not look.busy:
        message = f"Job {name} is suspended, and not by this operator: it goes on when whoever did it lets it"
        return Waiting(Reason.PENDING, message)
    if pod is None:
        message = (
            f"Job {name} has no pod yet; if this lasts, the API server refuses its pods (a quota, a policy):"
            f" kubectl describe job {name} tells why"
        )
        return Waiting(Reason.INITIALIZING, message)
    if pod.ended is not None:
        return follow_up(pod, look.report(pod))
    return pod.waiting or Waiting(Reason.INITIALIZING, f"pod {pod.name} is being deleted; a new pod follows")


def time_left(look: Look) -> float | None:
    """Seconds that the stage still has to start; None while no time runs."""
    since = _since(look)
    if since is None:
        return None
    waited = (look.now - datetime.fromisoformat(since)).total_seconds()
    return max(0.0, look.job.spec.start_timeout_seconds - waited)


def not_started(look: Look) -> str:
    """The sentence of a job whose time to start is over: what it waited for last."""
    seconds = look.job.spec.start_timeout_seconds
    return f"nothing ran within {seconds} s (startTimeoutSeconds): {_last_cause(look)}"


def _since(look: Look) -> str | None:
    """Since when the stage waits to start; None if it does not, or is held."""
    held = look.job.spec.suspend or look.status.is_true(ConditionType.SUSPENDED)
    if held or (look.own is not None and look.own.suspended):
        return None
    alive = [pod for pod in look.pods if pod.ended is None]
    pending = [pod for pod in alive if pod.started is None and pod.waiting is not None]
    if alive and not pending:
        return None
    if look.own is None:
        return _without_child(look) if not look.there and _told_why(look) else None
    return _of_pods(look.own, look, pending)


def _of_pods(own: ChildJob, look: Look, pending: list[Pod]) -> str | None:
    """Since the Job began, its first waiting pod was made, or else the last one ended."""
    if own.started is None:
        return None  # its controller has not seen it yet, or not since it goes on
    if pending:
        return max(own.started, min(pod.created for pod in pending))
    end = _last_end(look)
    return max(own.started, timestamp(datetime.fromisoformat(end) + BACK_OFF)) if end else own.started


def _without_child(look: Look) -> str | None:
    """Since the stage began, the job was let go on, or the last pod ended."""
    begun = look.status.start_time
    conditions = [ConditionType.SUSPENDED, *([ConditionType.DATA_READY] if look.stage is Stage.TRAIN else [])]
    changed = [c.last_transition_time for kind in conditions if (c := look.status.condition(kind)) is not None]
    return max(begun, _last_end(look), *changed) if begun is not None else None


def _told_why(look: Look) -> bool:
    """Whether an earlier look could not make the Job, and said so. Else nobody has tried: an operator that was away
    for longer than a job may wait begins with that."""
    accepted, said = look.status.condition(ConditionType.ACCEPTED), look.status.condition(_kind(look))
    conflict = accepted is not None and accepted.reason == Reason.NAME_CONFLICT
    return conflict or (said is not None and said.message.startswith((REFUSED, LEFT_OVER)))


def _kind(look: Look) -> ConditionType:
    """The condition that the stage would make true."""
    return ConditionType.RUNNING if look.stage is Stage.TRAIN else ConditionType.DATA_READY


def _last_end(look: Look) -> str:
    ends = [a.end_time or "" for a in look.status.attempts if of_stage(a, look.job, look.stage)]
    return max([*ends, *(pod.ended or "" for pod in look.pods)], default="")


def _last_cause(look: Look) -> str:
    """Why it waits now; without a Job, what was last said about it."""
    if look.own is not None:
        pending = next((pod.waiting for pod in look.pods if pod.ended is None and pod.waiting is not None), None)
        return (pending or waiting(look)).message
    accepted, said = look.status.condition(ConditionType.ACCEPTED), look.status.condition(_kind(look))
    refused = accepted is not None and accepted.reason == Reason.NAME_CONFLICT
    known = accepted if refused else said
    return known.message if known is not None else f"Job {child_name(look.job, look.stage)} was never made"
