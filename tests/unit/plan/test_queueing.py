"""Jobs in a queue: labels, sentences, whose end a preemption was."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from builders import NAMESPACE, NOW, NOW_TEXT, make_child, make_job, make_pod
from finetune_api.job import FineTuneJob
from finetune_api.names import PRIORITY_LABEL, QUEUE_LABEL
from finetune_api.status import Reason
from finetune_api.trainer import Stage
from finetune_operator.plan import seen
from finetune_operator.plan.queueing import (
    PREEMPTED,
    displaced,
    in_queue,
    labels_of_queue,
    look_again,
    refusal,
    waiting,
)
from finetune_operator.plan.state import ChildJob, Workload
from finetune_operator.settings import Settings

ON, OFF = Settings(kueue=True), Settings()
WORKLOAD = Workload("job-tune-train-1", "uid-of-workload", said="insufficient unused quota")


def labelled(**labels: str) -> FineTuneJob:
    """A job with labels, `queue` and `priority` among them."""
    keys = {"queue": QUEUE_LABEL, "priority": PRIORITY_LABEL, "pod_group": "kueue.x-k8s.io/pod-group-name"}
    job = make_job()
    given = {keys.get(key, key): value for key, value in labels.items()}
    return job.model_copy(update={"metadata": job.metadata.model_copy(update={"labels": given})})


def queued(**fields: Any) -> ChildJob:
    """A child that waits in its queue."""
    return make_child(make_job(), Stage.TRAIN, **{"queue": "team", "suspended": True, "workload": WORKLOAD, **fields})


@pytest.mark.parametrize(
    ("labels", "settings", "copied"),
    [
        ({"queue": "team", "priority": "high", "pod_group": "x", "other": "y"}, ON, {"team", "high"}),
        ({"queue": "team"}, ON, {"team"}),
        ({"priority": "high"}, ON, set()),
        ({"queue": ""}, ON, set()),
        ({"queue": "team", "priority": "high"}, OFF, set()),
    ],
)
def test_two_labels_are_copied_and_only_with_a_queue(labels, settings, copied):
    assert set(labels_of_queue(labelled(**labels), settings).values()) == copied


def test_a_job_in_a_queue_is_made_suspended_and_its_pods_bear_no_label_of_it():
    manifest = {"metadata": {"labels": {"a": "b"}}, "spec": {"template": {"metadata": {"labels": {"a": "b"}}}}}
    made = in_queue(manifest, {QUEUE_LABEL: "team"})
    assert made["metadata"]["labels"] == {"a": "b", QUEUE_LABEL: "team"}
    assert made["spec"] == {**manifest["spec"], "suspend": True}
    assert in_queue(manifest, {}) == manifest


def test_a_queue_needs_the_switch():
    refused = refusal(labelled(queue="team"), OFF)
    assert refused is not None
    assert refused.reason is Reason.INVALID_SPEC
    assert "kueue.x-k8s.io/queue-name is team" in refused.message
    assert "settings.kueue" in refused.message
    assert refusal(labelled(queue="team"), ON) is refusal(labelled(priority="high"), OFF) is None


@pytest.mark.parametrize(
    ("child", "settings", "words"),
    [
        (queued(), ON, "in queue team: insufficient unused quota"),
        (queued(workload=None), ON, "Kueue has made no Workload for it yet"),
        (queued(workload=None), OFF, "settings.kueue"),
        (
            queued(workload=replace(WORKLOAD, active=False)),
            ON,
            "kubectl patch workload job-tune-train-1 -n team --type",
        ),
    ],
)
def test_one_that_waits_says_why_and_what_to_do(child, settings, words):
    told = waiting(child, NAMESPACE, settings)
    assert told is not None
    assert told.reason is Reason.QUEUED
    assert words in told.message


def test_one_that_runs_or_has_no_queue_does_not_wait_in_one():
    assert waiting(queued(suspended=False), NAMESPACE, ON) is waiting(queued(queue=None), NAMESPACE, ON) is None


def test_the_longer_it_waits_the_rarer_it_is_looked_at():
    child = queued(suspended_since=NOW_TEXT)
    after = [look_again(child, ON, NOW + timedelta(minutes=m)) for m in (0, 1, 30, 6000)]
    assert after == [ON.poll_period_seconds, ON.poll_period_seconds, 180.0, 600.0]


LATER = "2026-01-02T03:09:05Z"


@pytest.mark.parametrize(
    ("child", "pod", "preempted"),
    [
        ({}, {"ended": LATER, "exit_code": 137}, True),
        ({}, {}, False),
        ({"suspended": False, "started": LATER}, {"ended": LATER, "exit_code": 1}, True),
        ({"suspended": False, "started": NOW_TEXT}, {"ended": LATER, "exit_code": 1}, False),
        ({"suspended": False}, {"ended": LATER, "exit_code": 1}, False),
        ({"queue": None}, {"ended": LATER, "exit_code": 137}, False),
        ({"mark": "Cancelled: cancelled"}, {"ended": LATER, "exit_code": 3}, False),
    ],
    ids=["while it waits", "not ended", "of an earlier start", "of this start", "never started", "no queue", "ours"],
)
def test_an_end_is_a_preemption_when_kueue_had_taken_the_place(child, pod, preempted):
    held = queued(**child)
    (told,) = displaced((make_pod(held, **pod),), held)
    assert told.disrupted == (PREEMPTED if preempted else None)


def test_what_the_node_said_of_a_disruption_stands():
    pod = make_pod(queued(), ended=LATER, disrupted="EvictionByEvictionAPI")
    assert displaced((pod,), queued()) == (pod,)
    assert displaced((pod,), None) == (pod,)


def condition(kind: str, holds: bool, message: str = "") -> dict[str, Any]:
    """A condition of a Workload."""
    return {"type": kind, "status": "True" if holds else "False", "message": message}


@pytest.mark.parametrize(
    ("status", "said"),
    [
        ({}, "waits for Kueue to look at it"),
        ({"conditions": [condition("QuotaReserved", False, "no quota")]}, "no quota"),
        ({"conditions": [condition("Evicted", True, "taken"), condition("QuotaReserved", False, "none")]}, "none"),
        ({"conditions": [condition("Evicted", True, "taken")]}, "taken"),
        (
            {
                "conditions": [condition("QuotaReserved", True)],
                "admissionChecks": [
                    {"name": "budget", "state": "Pending", "message": "asked"},
                    {"name": "a", "state": "Ready"},
                ],
            },
            "quota is reserved; waits for admission checks: budget Pending asked",
        ),
        ({"conditions": [condition("QuotaReserved", True)]}, "quota is reserved; waits for admission checks"),
        ({"conditions": [condition("QuotaReserved", True), condition("Admitted", True)]}, "admitted; Kueue starts it"),
        ({"conditions": [condition("Admitted", True), condition("Finished", True, "cannot start")]}, "cannot start"),
    ],
)
def test_the_sentence_is_kueues_own(status, said):
    assert read({"status": status}).said == said


def read(workload: dict[str, Any], *, uid: str = "1", kind: str = "Job", **spec: Any) -> Any:
    """The Workload of the Job with uid 1, from JSON."""
    owner = {"kind": kind, "name": "a", "uid": uid, "controller": True}
    metadata = {"name": "job-a-1", "uid": "2", "ownerReferences": [owner]}
    job = {"metadata": {"name": "a", "uid": "1", "labels": {QUEUE_LABEL: "team"}}, "spec": {"suspend": True}}
    return seen.child_job(job, [{"metadata": metadata, "spec": spec, **workload}]).workload


def test_a_workload_is_ours_when_our_job_controls_it():
    assert read({}) == Workload("job-a-1", "2", said="waits for Kueue to look at it")
    assert read({}, active=False).active is False
    assert read({}, uid="3") is None
    assert read({}, kind="Pod") is None


def test_a_job_with_an_empty_label_is_in_no_queue():
    job = {"metadata": {"name": "a", "uid": "1", "labels": {QUEUE_LABEL: ""}}}
    assert seen.child_job(job).queue is None
