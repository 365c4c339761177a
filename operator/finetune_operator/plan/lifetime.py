"""How long a job runs, how long it may, and how long its record is kept.

Running time is the time in which a pod of the job ran, in either stage: what waits, queues or is suspended costs
nothing. A batch/v1 Job begins its own count anew whenever it is resumed, so the count is kept here, in the status:
`activeSeconds` for all that is over, `activeSince` for what still runs. Both follow from the pods' own times, so that
an operator that was away loses nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from finetune_api.job import FineTuneJob
from finetune_api.runtime import RuntimeSpec
from finetune_api.status import Attempt, JobStatus

Span = tuple[str, str]
"""Begin and end of a time in which a pod ran. Timestamps are all of one form, so that they sort as they follow."""


@dataclass(frozen=True, slots=True)
class Allowance:
    """How long a job may run."""

    seconds: int
    by: str
    """The field that says so."""


def with_running_time(status: JobStatus, before: tuple[Attempt, ...], ended: tuple[Attempt, ...] = ()) -> JobStatus:
    """`status`, whose attempts are up to date, with its running time.

    `activeSince` is when the longest-running of the pods at work began, and `activeSeconds` all time before that.

    Args:
        before: the attempts at the look before: an end that stands there is counted already.
        ended: attempts whose end is new, among them those that are too many to be kept in the status.
    """
    counted = {attempt.pod for attempt in before if attempt.end_time is not None}
    known = {attempt.pod: attempt for attempt in (*ended, *status.attempts)}
    fresh = [a for a in known.values() if a.pod not in counted and a.start_time is not None]
    begun = [(_later(attempt.start_time or "", status.active_since), attempt.end_time) for attempt in fresh]
    since = min((begin for begin, end in begun if end is None), default=None)
    over = [(begin, min(end, since or end)) for begin, end in begun if end is not None]
    seconds = status.active_seconds + sum(_seconds(*span) for span in _merged(over))
    return status.model_copy(update={"active_seconds": seconds, "active_since": since})


def stopped_running(status: JobStatus, now: str) -> JobStatus:
    """`status` of a job that is over: whatever ran, runs no more."""
    if status.active_since is None:
        return status
    seconds = status.active_seconds + _seconds(status.active_since, now)
    return status.model_copy(update={"active_seconds": seconds, "active_since": None})


def ran(status: JobStatus, now: datetime) -> float:
    """Seconds that the job has run so far."""
    since = status.active_since
    return status.active_seconds + (max(0.0, (now - _moment(since)).total_seconds()) if since else 0.0)


def allowance(job: FineTuneJob, runtime: RuntimeSpec, runtime_name: str) -> Allowance | None:
    """How long the job may run: its own word, and never more than the runtime's limit; None = for ever.

    The field may be raised after the start, when nothing can refuse it any more: the frozen limit still holds.
    """
    given, most = job.spec.active_deadline_seconds, runtime.limits.max_active_deadline_seconds
    if most is not None and (given is None or given > most):
        return Allowance(most, f"FineTuneRuntime {runtime_name} (spec.limits.maxActiveDeadlineSeconds)")
    return Allowance(given, "activeDeadlineSeconds") if given is not None else None


def kept_for(job: FineTuneJob, status: JobStatus, now: datetime) -> float | None:
    """Seconds until a final job is deleted, 0 = now; None = it is kept."""
    ttl = job.spec.ttl_seconds_after_finished
    if ttl is None or status.completion_time is None:
        return None
    return max(0.0, ttl - (now - _moment(status.completion_time)).total_seconds())


def _later(time: str, other: str | None) -> str:
    return max(time, other or time)


def _merged(spans: Iterable[Span]) -> list[Span]:
    """The same times without overlaps: the pods of several nodes run at once."""
    merged: list[Span] = []
    for begin, end in sorted(spans):
        if merged and begin <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((begin, end))
    return merged


def _seconds(begin: str, end: str) -> int:
    return max(0, round((_moment(end) - _moment(begin)).total_seconds()))


def _moment(time: str) -> datetime:
    return datetime.fromisoformat(time)
