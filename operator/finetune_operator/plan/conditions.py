"""Conditions: computed anew in each look; a transition time moves only when the status changes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from finetune_api.status import Condition, ConditionStatus, ConditionType, JobStatus, Phase, Reason
from finetune_operator.plan.state import Event

ORDER = tuple(ConditionType)
MAX_MESSAGE = 8192
QUIET = frozenset({Reason.PENDING, Reason.INITIALIZING, Reason.FINISHED, Reason.EVICTED, Reason.SUSPENDED})
"""Reasons that are no event: nothing has happened, or the end of the pod is the event."""
ALARMING = frozenset(
    {
        Reason.UNSCHEDULABLE,
        Reason.IMAGE_PULL_FAILED,
        Reason.CONTAINER_CONFIG_ERROR,
        Reason.SECRET_NOT_FOUND,
        Reason.NODE_LOST,
        Reason.NO_REPORT,
        Reason.ENDPOINT_UNREACHABLE,
    }
)


@dataclass(frozen=True, slots=True)
class Say:
    """What a condition shall say from now on."""

    type: ConditionType
    holds: bool
    message: str
    reason: Reason | None = None
    """None = the type itself: it holds and has no cause of its own."""


def updated(old: tuple[Condition, ...], says: Iterable[Say], now: str, generation: int | None) -> tuple[Condition, ...]:
    """The conditions with `says` in them, in a fixed order; those that `says` does not name stay."""
    conditions = {c.type: c.model_copy(update={"observed_generation": generation}) for c in old}
    for say in says:
        status = ConditionStatus.TRUE if say.holds else ConditionStatus.FALSE
        before = conditions.get(say.type)
        unchanged = before is not None and before.status is status
        conditions[say.type] = Condition(
            type=say.type.value,
            status=status,
            reason=(say.reason or say.type).value,
            message=say.message[:MAX_MESSAGE],
            last_transition_time=before.last_transition_time if before is not None and unchanged else now,
            observed_generation=generation,
        )
    rank = {kind.value: index for index, kind in enumerate(ORDER)}
    return tuple(sorted(conditions.values(), key=lambda c: rank.get(c.type, len(rank))))


def no_more_suspended(old: JobStatus, says: Iterable[Say]) -> list[Say]:
    """Suspended=False for a job that was suspended, unless `says` says more of it."""
    kinds = {say.type for say in says}
    if not old.is_true(ConditionType.SUSPENDED) or ConditionType.SUSPENDED in kinds:
        return []
    if kinds & {ConditionType.COMPLETE, ConditionType.FAILED}:
        return [Say(ConditionType.SUSPENDED, False, "the job has ended", Reason.FINISHED)]
    return [Say(ConditionType.SUSPENDED, False, "the job goes on", Reason.RESUMED)]


def acknowledged(status: JobStatus, generation: int | None) -> JobStatus:
    """A final status that has seen `generation`: a late cancel changes nothing, and `kubectl wait` must not hang."""
    conditions = tuple(c.model_copy(update={"observed_generation": generation}) for c in status.conditions)
    return status.model_copy(update={"observed_generation": generation, "conditions": conditions})


def transitions(old: JobStatus, new: JobStatus, told: Iterable[str] = ()) -> list[Event]:
    """One event per condition whose status or reason has changed to something worth telling.

    Args:
        told: reasons that another event of this look tells; only of a final condition they are told again.
    """
    told = set(told) if not new.is_final else set()
    events = []
    for condition in new.conditions:
        before = next((c for c in old.conditions if c.type == condition.type), None)
        same = before is not None and (before.status, before.reason) == (condition.status, condition.reason)
        quiet = condition.reason in QUIET or condition.reason in told
        if same or quiet or condition.type == ConditionType.STALLED:
            continue
        events.append(Event("Warning" if _alarming(condition) else "Normal", condition.reason, condition.message))
    return events


def phase_of(status: JobStatus) -> Phase:
    """The one word for people, from the conditions."""
    failed = status.condition(ConditionType.FAILED)
    published = status.condition(ConditionType.PUBLISHED)
    if failed is not None and failed.status is ConditionStatus.TRUE:
        return Phase.CANCELLED if failed.reason == Reason.CANCELLED else Phase.FAILED
    if status.is_true(ConditionType.COMPLETE):
        return Phase.COMPLETED
    if status.is_true(ConditionType.SUSPENDED):
        return Phase.SUSPENDED
    if status.start_time is None:
        return Phase.PENDING
    if _queued(status):
        return Phase.QUEUED
    if not status.is_true(ConditionType.DATA_READY):
        return Phase.PREPARING
    if published is not None and (published.status is ConditionStatus.TRUE or published.reason == Reason.UPLOADING):
        return Phase.PUBLISHING
    return Phase.RUNNING if status.is_true(ConditionType.RUNNING) else Phase.PENDING


def _queued(status: JobStatus) -> bool:
    stages = (status.condition(ConditionType.DATA_READY), status.condition(ConditionType.RUNNING))
    return any(c is not None and c.reason == Reason.QUEUED for c in stages)


def _alarming(condition: Condition) -> bool:
    if condition.type == ConditionType.ACCEPTED:
        return condition.status is ConditionStatus.FALSE
    return condition.type == ConditionType.FAILED or condition.reason in ALARMING
