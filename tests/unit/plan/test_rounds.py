"""Several pods that train as one: which are one attempt, who speaks for it, and what of it is counted."""

from __future__ import annotations

from typing import Any

import pytest

from builders import before_start, make_child, make_job, make_pod, make_runtime
from finetune_api.job import FineTuneJob
from finetune_api.status import ConditionType, JobStatus, Reason
from finetune_api.trainer import Stage
from finetune_operator.plan.decide import decide
from finetune_operator.plan.rounds import speakers
from finetune_operator.plan.state import Plan, Pod, Waiting
from lives import NOW, SETTINGS, after, look, message, said, seen

NODES = 2


def started() -> FineTuneJob:
    """A job on two nodes, with its data ready."""
    job = make_job(resources={"nodes": NODES}, backoffLimit=1)
    job = after(job, decide(job, before_start(make_runtime(limits={"maxNodes": 4})), SETTINGS, NOW))
    return after(job, look(job, seen(Stage.PREPARE, make_child(job, Stage.PREPARE, complete=True))))


JOB = started()
CHILD = make_child(JOB, Stage.TRAIN)


def at(second: int) -> str:
    return f"2026-01-02T03:05:{second:02d}Z"


def pod(index: int, name: str, begun: int, end: int | None = None, code: int | None = None, **more: Any) -> Pod:
    """A pod of the training that runs since `begun`, or ended."""
    ends = {"ended": at(end), "exit_code": code} if end is not None else {}
    return make_pod(CHILD, f"{index}-{name}", index=index, created=at(begun), started=at(begun), **ends, **more)


def then(job: FineTuneJob, *pods: Pod) -> Plan:
    """A look at the training with these pods."""
    return look(job, seen(Stage.TRAIN, CHILD, *sorted(pods, key=lambda p: (p.created, p.name))))


def counted(status: JobStatus) -> tuple[int, int, list[tuple[str, int | None]]]:
    attempts = [(a.pod.removeprefix("tune-train-"), a.exit_code) for a in status.attempts if "train" in a.pod]
    return status.restarts, status.disruptions, attempts


def test_one_node_needs_no_rounds():
    pods = (pod(0, "a", 1, 2, 1), pod(0, "b", 3))
    assert speakers(pods, 1) == pods


def test_the_lost_pod_counts_and_its_peer_does_not():
    plan = then(JOB, pod(0, "a", 1), pod(1, "a", 1))
    assert counted(plan.status) == (0, 0, [("0-a", None)])
    assert said(plan)["Running"] == ("True", "Running")
    job = after(JOB, plan)
    lost = pod(1, "a", 1, 10, 137)
    plan = then(job, pod(0, "a", 1), lost)
    assert counted(plan.status) == (1, 0, [("1-a", 137)])
    job = after(job, plan)
    plan = then(job, pod(0, "a", 1, 12, 4), lost, pod(1, "b", 11))
    assert counted(plan.status)[:2] == (1, 0)
    job = after(job, plan)
    plan = then(job, pod(0, "a", 1, 12, 4), lost, pod(1, "b", 11), pod(0, "b", 13))
    assert counted(plan.status) == (1, 0, [("1-a", 137), ("0-b", None)])
    assert said(plan)["Running"] == ("True", "Running")


def test_a_peer_that_is_seen_to_end_first_waits_for_the_one_that_was_lost():
    job = after(JOB, then(JOB, pod(0, "a", 1), pod(1, "a", 1)))
    plan = then(job, pod(0, "a", 1, 9, 4), pod(1, "a", 1))
    assert counted(plan.status)[:2] == (0, 0)
    evicted = pod(1, "a", 1, 10, 137, disrupted="DeletionByTaintManager")
    plan = then(after(job, plan), pod(0, "a", 1, 9, 4), evicted, pod(0, "b", 10))
    assert counted(plan.status)[:2] == (0, 1)


def test_the_operator_that_comes_late_counts_the_same():
    pods = [pod(0, "a", 1, 12, 4), pod(1, "a", 1, 10, 137), pod(1, "b", 11), pod(0, "b", 13)]
    assert counted(then(JOB, *pods).status) == (1, 0, [("1-a", 137), ("0-b", None)])


def test_all_pods_of_a_round_that_fail_are_one_failure():
    first = [pod(0, "a", 1, 10, 20), pod(1, "a", 1, 11, 20)]
    plan = then(JOB, *first)
    assert counted(plan.status)[:2] == (1, 0)
    second = [pod(0, "b", 15, 20, 20), pod(1, "b", 15, 21, 20)]
    plan = then(after(JOB, plan), *first, *second)
    assert counted(plan.status)[:2] == (2, 0)
    assert [c.name for c in plan.suspend] == ["tune-train"], "more failures than backoffLimit: no third round"


def test_what_only_the_user_can_mend_is_the_cause_whoever_ended_first():
    pods = [pod(0, "a", 1, 11, 14), pod(1, "a", 1, 10, 1)]
    (speaker,) = speakers(tuple(pods), NODES)
    assert (speaker.name, speaker.peers) == ("tune-train-0-a", {"tune-train-1-a"})


def test_a_stop_is_one_free_end():
    pods = [pod(0, "a", 1, 10, 3), pod(1, "a", 1, 11, 3)]
    assert counted(then(JOB, *pods).status)[:2] == (0, 1)


def test_the_good_end_of_index_0_is_the_good_end_of_all():
    (speaker,) = speakers((pod(0, "a", 1, 10, 0), pod(1, "a", 1, 11, 137)), NODES)
    assert speaker.index == 0
    assert counted(then(JOB, pod(0, "a", 1, 10, 0), pod(1, "a", 1, 11, 137)).status)[:2] == (0, 0)


@pytest.mark.parametrize("index", [0, 1])
def test_a_pod_that_waits_holds_all_of_them_up(index):
    waiting = Waiting(Reason.UNSCHEDULABLE, "pod waits: 0/1 nodes are available")
    held_up = make_pod(CHILD, f"{index}-a", index=index, created=at(1), started=None, waiting=waiting)
    plan = then(JOB, held_up, pod(1 - index, "a", 1))
    assert said(plan)["Running"] == ("False", "Unschedulable")
    assert "0/1 nodes are available" in message(plan, ConditionType.RUNNING)
    assert counted(plan.status)[2] == []


def test_training_runs_when_all_pods_are_there():
    plan = then(JOB, pod(0, "a", 1))
    assert said(plan)["Running"] == ("False", "Initializing")
    assert message(plan, ConditionType.RUNNING) == "1 of 2 pods are there"


def test_pods_of_the_same_second_are_one_round_and_a_second_pod_of_an_index_is_the_next():
    early = (pod(0, "a", 1, 5, 137), pod(1, "a", 5), pod(0, "b", 5))
    assert [(s.name, set(s.peers)) for s in speakers(early, NODES)] == [
        ("tune-train-0-a", {"tune-train-1-a"}),
        ("tune-train-0-b", set()),
    ]
