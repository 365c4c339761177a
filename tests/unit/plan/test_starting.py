"""The time to start: what runs it down, what lets it rest, and what is said when it is over."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from builders import NOW, NOW_TEXT, make_child, make_pod
from finetune_api.status import Attempt, ConditionType, Reason
from finetune_api.trainer import Stage
from finetune_operator.plan.starting import BACK_OFF
from finetune_operator.plan.state import Observed, Waiting, timestamp
from lives import after, look, message, said, seen, started

LIMIT = 600
BEFORE, AFTER = timedelta(seconds=LIMIT - 1), timedelta(seconds=LIMIT)
NO_GPU = Waiting(Reason.UNSCHEDULABLE, "pod p: Unschedulable: 0/3 nodes are available: Insufficient nvidia.com/gpu")


def at(seconds: int) -> str:
    return timestamp(NOW + timedelta(seconds=seconds))


def job(stage: Stage = Stage.TRAIN, **more):
    return started(stage, startTimeoutSeconds=LIMIT, **more)


def child(owner, stage: Stage = Stage.TRAIN, **fields):
    return make_child(owner, stage, **{"started": NOW_TEXT, **fields})


def pending(of, suffix: str = "aaaaa", **fields):
    return make_pod(of, suffix, **{"started": None, "waiting": NO_GPU, **fields})


@pytest.mark.parametrize("stage", list(Stage))
def test_a_pod_that_waits_too_long_ends_the_job_with_its_last_cause(stage):
    owner = job(stage)
    own = child(owner, stage)
    seen_now = seen(stage, own, pending(own))
    waits = look(owner, seen_now, NOW + BEFORE)
    assert (waits.suspend, waits.look_again_after) == ((), 1.0)
    kind = ConditionType.RUNNING if stage is Stage.TRAIN else ConditionType.DATA_READY
    assert said(waits)[kind] == ("False", "Unschedulable")
    (held,) = look(owner, seen_now, NOW + AFTER).suspend
    assert held.mark == f"StartTimeout: nothing ran within 600 s (startTimeoutSeconds): {NO_GPU.message}"
    over = look(owner, seen(stage, replace(held, halted=True)), NOW + AFTER)
    assert said(over)["Failed"] == ("True", "StartTimeout")
    assert NO_GPU.message in message(over, ConditionType.FAILED), "though the pod that said so is gone"


@pytest.mark.parametrize(
    ("own", "pods"),
    [
        ({"suspended": True}, []),
        ({"started": None}, []),
        ({"started": at(1)}, [{}]),
        ({}, [{"created": at(1)}]),
        ({}, [{"started": NOW_TEXT, "waiting": None, "running": True}]),
        ({}, [{"started": NOW_TEXT, "waiting": Waiting(Reason.NODE_LOST, "gone")}]),
        ({}, [{"started": NOW_TEXT, "waiting": None, "ended": at(1), "exit_code": 1}]),
    ],
    ids=["queued", "not seen", "let go on", "newer pod", "running", "node lost", "between two pods"],
)
def test_time_rests_or_begins_anew(own, pods):
    owner = job(backoffLimit=9)
    own = child(owner, **own)
    plan = look(owner, seen(Stage.TRAIN, own, *(pending(own, **fields) for fields in pods)), NOW + AFTER)
    assert plan.suspend == ()
    assert ConditionType.FAILED not in said(plan)


def test_a_pod_that_is_never_replaced_ends_the_job_after_the_longest_pause():
    owner = job(backoffLimit=9)
    own = child(owner)
    dead = pending(own, started=NOW_TEXT, waiting=None, ended=at(1), exit_code=1)
    late = NOW + timedelta(seconds=1) + BACK_OFF
    assert look(owner, seen(Stage.TRAIN, own, dead), late + BEFORE).suspend == ()
    (held,) = look(owner, seen(Stage.TRAIN, own, dead), late + AFTER).suspend
    assert "with exit code 1 and left no report" in held.mark


def test_one_pod_of_several_that_waits_too_long_is_enough():
    owner = job()
    own = child(owner)
    runs = make_pod(own, "bbbbb")
    (held,) = look(owner, seen(Stage.TRAIN, own, pending(own), runs), NOW + AFTER).suspend
    assert "Insufficient nvidia.com/gpu" in held.mark


def test_a_job_whose_pods_are_refused_ends_too():
    owner = job(Stage.PREPARE)
    own = child(owner, Stage.PREPARE)
    (held,) = look(owner, seen(Stage.PREPARE, own), NOW + AFTER).suspend
    assert "kubectl describe job tune-prepare tells why" in held.mark


def test_a_child_that_is_refused_for_too_long_ends_the_job_with_the_refusal():
    owner = job(Stage.PREPARE)
    assert look(owner, Observed(), NOW + BEFORE).create != ()
    refusal = "the API server refused Job tune-prepare: exceeded quota"
    conditions = [
        c.model_copy(update={"message": refusal}) if c.type == ConditionType.DATA_READY else c
        for c in owner.status.conditions
    ]
    told = owner.model_copy(update={"status": owner.status.model_copy(update={"conditions": tuple(conditions)})})
    plan = look(told, Observed(), NOW + AFTER)
    assert (plan.create, said(plan)["Failed"]) == ((), ("True", "StartTimeout"))
    assert message(plan, ConditionType.FAILED).endswith(f"(startTimeoutSeconds): {refusal}")


@pytest.mark.parametrize("stage", list(Stage))
def test_an_operator_that_was_away_for_longer_makes_the_job_instead_of_ending_it(stage):
    """It died between the word that a stage begins and the making of its Job: nothing was tried, so nothing is late."""
    plan = look(job(stage), Observed(), NOW + AFTER + AFTER)
    assert [m["kind"] for m in plan.create][-1] == "Job"
    assert ConditionType.FAILED not in said(plan)


def test_a_name_that_is_taken_for_too_long_ends_the_job():
    owner = job()
    foreign = child(owner, owner_uid="another", being_deleted=True)
    for what in (foreign, replace(foreign, being_deleted=False, owner=None)):
        told = after(owner, look(owner, seen(Stage.TRAIN, what), NOW + BEFORE))
        plan = look(told, seen(Stage.TRAIN, what), NOW + AFTER + AFTER)
        assert said(plan)["Failed"] == ("True", "StartTimeout")
        assert said(plan)["Running"] == ("False", "StartTimeout")
        assert what.name in message(plan, ConditionType.FAILED)


def test_a_child_that_vanished_after_days_has_all_the_time_again():
    owner = job()
    ended = Attempt(pod="tune-train-aaaaa", start_time=NOW_TEXT, end_time=at(LIMIT))
    status = owner.status.model_copy(update={"attempts": (ended,)})
    plan = look(owner.model_copy(update={"status": status}), Observed(), NOW + AFTER)
    assert plan.create != ()
    assert ConditionType.FAILED not in said(plan)
