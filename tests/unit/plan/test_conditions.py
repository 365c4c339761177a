"""Conditions keep their transition time until their status changes, and tell people what happened."""

from __future__ import annotations

import pytest

from finetune_api.status import Condition, ConditionType, JobStatus, Phase, Reason
from finetune_operator.plan.conditions import Say, phase_of, transitions, updated

EARLY, LATE = "2026-01-01T00:00:00Z", "2026-01-01T00:10:00Z"


def said(*says: Say, old: tuple[Condition, ...] = (), now: str = EARLY) -> tuple[Condition, ...]:
    return updated(old, says, now, generation=1)


def test_the_transition_time_moves_with_the_status_and_with_nothing_else():
    first = said(Say(ConditionType.RUNNING, False, "waits", Reason.UNSCHEDULABLE))
    other_reason = said(Say(ConditionType.RUNNING, False, "pulls", Reason.INITIALIZING), old=first, now=LATE)
    assert other_reason[0].last_transition_time == EARLY
    assert other_reason[0].reason == "Initializing"
    runs = said(Say(ConditionType.RUNNING, True, "trains"), old=other_reason, now=LATE)
    assert (runs[0].last_transition_time, runs[0].reason) == (LATE, "Running")


def test_conditions_stand_in_one_order_and_unnamed_ones_stay():
    first = said(Say(ConditionType.COMPLETE, True, "done", Reason.SUCCEEDED), Say(ConditionType.ACCEPTED, True, "ok"))
    second = said(Say(ConditionType.RUNNING, False, "over", Reason.FINISHED), old=first, now=LATE)
    assert [c.type for c in second] == ["Accepted", "Running", "Complete"]


@pytest.mark.parametrize(
    ("says", "started", "phase"),
    [
        ([], False, Phase.PENDING),
        ([], True, Phase.PREPARING),
        ([Say(ConditionType.DATA_READY, True, "")], True, Phase.PENDING),
        ([Say(ConditionType.DATA_READY, True, ""), Say(ConditionType.RUNNING, True, "")], True, Phase.RUNNING),
        (
            [
                Say(ConditionType.DATA_READY, True, ""),
                Say(ConditionType.RUNNING, True, ""),
                Say(ConditionType.PUBLISHED, False, "", Reason.UPLOADING),
            ],
            True,
            Phase.PUBLISHING,
        ),
        ([Say(ConditionType.COMPLETE, True, "", Reason.SUCCEEDED)], True, Phase.COMPLETED),
        ([Say(ConditionType.FAILED, True, "", Reason.DIVERGED)], True, Phase.FAILED),
        ([Say(ConditionType.FAILED, True, "", Reason.CANCELLED)], True, Phase.CANCELLED),
    ],
)
def test_the_phase_follows_from_the_conditions(says, started, phase):
    assert phase_of(JobStatus(conditions=said(*says), start_time=EARLY if started else None)) is phase


def test_an_event_tells_each_change_once_and_is_silent_about_waiting():
    old = JobStatus(conditions=said(Say(ConditionType.ACCEPTED, True, "ok")))
    new = JobStatus(
        conditions=said(
            Say(ConditionType.ACCEPTED, True, "ok"),
            Say(ConditionType.RUNNING, False, "waits", Reason.PENDING),
            Say(ConditionType.FAILED, True, "the loss was not finite", Reason.DIVERGED),
            Say(ConditionType.STALLED, True, "the loss was not finite", Reason.DIVERGED),
        )
    )
    assert [(e.type, e.reason, e.message) for e in transitions(old, new)] == [
        ("Warning", "Diverged", "the loss was not finite")
    ]
    assert transitions(new, new) == []


def test_what_another_event_tells_is_not_told_again_but_for_the_end():
    def status(*says: Say) -> JobStatus:
        return JobStatus(conditions=said(*says))

    lost = status(Say(ConditionType.RUNNING, False, "lost", Reason.NODE_LOST))
    assert [e.reason for e in transitions(JobStatus(), lost)] == ["NodeLost"]
    assert transitions(JobStatus(), lost, ["NodeLost"]) == []
    failed = status(Say(ConditionType.FAILED, True, "full", Reason.STORAGE_FULL))
    assert [e.reason for e in transitions(JobStatus(), failed, ["StorageFull"])] == ["StorageFull"]
