"""The one way in which a started job is stopped, whatever the reason: its Job is held, its pods save and leave.

What asks for a stop is one table, the first that asks wins. The request is carried out by `Plan.suspend` and written
on the Job as a mark, in the same call: so it stands when the cause can no longer be seen (the pod that could not start
is gone, the clock of running time rests), and only what bears our mark is ever let go on by `Plan.resume`. A Job that
somebody else holds (a queue, a person) stays theirs.

A Job in a queue is held as `queueing` says, any other by its spec.suspend. Its controller takes the pods out of its own
count before it deletes them, so that a stop never uses up backoffLimit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from finetune_api import names
from finetune_api.status import Reason
from finetune_operator.plan import queueing
from finetune_operator.plan.attempts import MAX_FREE, last_failure, out_of_memory_twice
from finetune_operator.plan.failure import cause_of, killed_for_memory, too_often
from finetune_operator.plan.lifetime import allowance, ran
from finetune_operator.plan.look import Look
from finetune_operator.plan.size import output_uri
from finetune_operator.plan.starting import not_started, time_left
from finetune_operator.plan.state import ChildJob

MAX_MARK = 1024
TELLS_STATE = frozenset({Reason.USER_REQUESTED, Reason.CANCELLED, Reason.DEADLINE_EXCEEDED})
"""Stops whose sentence ends with what was saved; that of a failure is whole already."""


@dataclass(frozen=True, slots=True)
class Stop:
    """A request to stop a job, with its cause."""

    reason: Reason
    message: str
    """Why, in a clause to which what was saved can be added."""

    @property
    def final(self) -> bool:
        """Whether the job fails by it; a suspended one goes on later."""
        return self.reason is not Reason.USER_REQUESTED


@dataclass(frozen=True, slots=True)
class Clock:
    """A stop that comes when its time is out."""

    left: float
    """Seconds; it is out at 0."""
    stop: Stop


def wanted(look: Look) -> Stop | None:
    """The stop that holds now: the first that asks."""
    return next((stop for ask in ORDER if (stop := ask(look)) is not None), None)


def over(look: Look) -> bool:
    """Whether a stop has done its work: nothing runs, and nothing will."""
    own = look.own
    if own is None or look.busy:
        return not look.busy
    return own.held and own.halted and not (own.workload is not None and own.workload.reserved)


def held(child: ChildJob, stop: Stop) -> ChildJob:
    """The child as `Plan.suspend` shall make it."""
    mark = f"{stop.reason.value}: {stop.message}"[:MAX_MARK]
    return queueing.held(child, mark) if child.queue is not None else replace(child, suspended=True, mark=mark)


def released(child: ChildJob) -> ChildJob:
    """The child as `Plan.resume` shall make it."""
    in_queue = child.queue is not None or child.parked is not None
    return queueing.released(child) if in_queue else replace(child, suspended=False, mark=None)


def sentence(look: Look, stop: Stop) -> str:
    """Why it stopped, what was saved, and how it goes on, if it can."""
    if stop.reason not in TELLS_STATE:
        return stop.message
    recovery = look.status.recovery
    state = "; no state was saved" if recovery is None else f"; saved at step {recovery.step}"
    if not stop.final:
        return f"{stop.message}{state}; set spec.suspend to false to go on"
    folder = _private_folder(look) if recovery is not None else None
    return f"{stop.message}{state}" + (f"; its state is kept at {folder}" if folder else "")


def due(look: Look) -> float | None:
    """Seconds until the first stop that time alone brings; None = none is on its way."""
    return min((clock.left for ask in CLOCKS if (clock := ask(look)) is not None), default=None)


def given_up(look: Look) -> Stop | None:
    """Too many failures, or one that repeats: another attempt would only be one more."""
    if out_of_memory_twice(look.tally, look.job, look.stage):
        return Stop(Reason.OUT_OF_MEMORY, killed_for_memory(look.job, look.runtime, look.status))
    if look.status.restarts > look.job.spec.backoff_limit:
        last = last_failure(look.status.attempts, look.job, look.stage)
        return Stop(*cause_of(last, f"more than {look.job.spec.backoff_limit} failures"))
    if look.status.disruptions >= MAX_FREE:
        return Stop(Reason.BACKOFF_LIMIT_EXCEEDED, too_often(look.status.disruptions, look.status.attempts))
    return None


def _cancelled(look: Look) -> Stop | None:
    return Stop(Reason.CANCELLED, "cancelled") if look.job.spec.cancel else None


def _out_of_time(look: Look) -> Stop | None:
    clocks = (clock for ask in CLOCKS if (clock := ask(look)) is not None)
    return next((clock.stop for clock in clocks if clock.left <= 0), None)


def _deadline(look: Look) -> Clock | None:
    """activeDeadlineSeconds, of running time."""
    resolved = look.status.resolved
    name = resolved.runtime.name if resolved and resolved.runtime else ""
    allowed = allowance(look.job, look.runtime, name)
    if allowed is None or (look.status.active_since is None and ran(look.status, look.now) < allowed.seconds):
        return None
    message = f"ran for {allowed.seconds} s, all that {allowed.by} allows"
    return Clock(allowed.seconds - ran(look.status, look.now), Stop(Reason.DEADLINE_EXCEEDED, message))


def _start(look: Look) -> Clock | None:
    """startTimeoutSeconds, of waiting for an image, a node, a Secret, a quota."""
    left = time_left(look)
    return Clock(left, Stop(Reason.START_TIMEOUT, not_started(look))) if left is not None else None


def _marked(look: Look) -> Stop | None:
    """What the mark says: a final stop, once begun, is not taken back because its cause is out of sight."""
    if look.own is None or look.own.mark is None:
        return None
    word, _, message = look.own.mark.partition(": ")
    stop = Stop(Reason(word), message) if word in set(Reason) else None
    return stop if stop is not None and stop.final else None


def _suspended(look: Look) -> Stop | None:
    return Stop(Reason.USER_REQUESTED, "suspended") if look.job.spec.suspend else None


def _private_folder(look: Look) -> str | None:
    target = output_uri(look.job, look.runtime)
    return f"{target}/{names.PRIVATE_DIRECTORY}/{look.job.metadata.uid}" if target else None


CLOCKS: tuple[Callable[[Look], Clock | None], ...] = (_deadline, _start)
"""Stops that time alone brings, the first that is out wins."""
ORDER: tuple[Callable[[Look], Stop | None], ...] = (_cancelled, _marked, _out_of_time, given_up, _suspended)
"""Who may ask for a stop, the first wins: all but the last are final."""
