"""How long a job may run and how long its record is kept; what may change after its start, and what is final."""

from __future__ import annotations

import threading
from datetime import datetime
from typing import Any

import pytest

from finetune_api.failures import Failure, FailureCode
from judges import collection
from kubelet import KILLED, Behaviour, wait_for
from manifests import runtime
from world import MOMENT, World, failing, progress, published, script

RUNTIMES = collection(runtime(), "")
OUTPUT = {"output": {"uri": "pvc://finetune-outputs"}}
STEPS = (progress(1), progress(2))


def held(**more: Any) -> Behaviour:
    """A training pod that saves two steps and goes on until it is stopped."""
    return Behaviour(STEPS, until=threading.Event(), **more)


def resumed(name: str) -> Behaviour:
    """A pod that goes on from step 2."""
    return Behaviour(({**progress(3), "resumed_from_step": 2},), word=published(name))


def saved(world: World, name: str) -> None:
    """Wait until a state is saved at step 2."""
    wait_for(lambda: world.status(name).get("recovery", {}).get("step") == 2, "a recovery state", 90)


def gone(world: World, name: str) -> bool:
    """Whether the job, its Jobs and pods are deleted."""
    return world.api.get(f"{world.jobs}/{name}").status == 404 and not world.children(name)


@pytest.fixture
def limited(world):
    """A runtime that allows four seconds of running time, deleted behind the test if it is there."""
    name = f"limited-{world.namespace}"
    world.api.post(RUNTIMES, runtime(name, limits={"maxActiveDeadlineSeconds": 4}, defaults=OUTPUT)).must()
    yield name
    world.api.delete(f"{RUNTIMES}/{name}")


# --- deadline --------------------------------------------------------------------------------------------------------


def test_a_job_that_has_run_for_long_enough_saves_and_ends(world) -> None:
    world.apply("job", script("job", train=[held()]), activeDeadlineSeconds=3)
    world.kubectl_wait("job", "Failed")
    failed = world.condition("job", "Failed")
    assert failed["reason"] == "DeadlineExceeded"
    assert "ran for 3 s, all that activeDeadlineSeconds allows; saved at step 2;" in failed["message"]
    status = world.status("job")
    assert (status["phase"], "activeSince" in status) == ("Failed", False)
    assert status["activeSeconds"] >= 2, "of whole seconds one may be missing"
    assert all(pod["status"]["phase"] != "Running" for pod in world.pods("train"))


def test_suspended_time_does_not_count_and_the_deadline_may_be_raised(world) -> None:
    world.apply("job", script("job", train=[held(), held(), resumed("job")]), activeDeadlineSeconds=6)
    saved(world, "job")
    world.ask("job", suspend=True)
    world.kubectl_wait("job", "Suspended")
    suspended = datetime.fromisoformat(world.condition("job", "Suspended")["lastTransitionTime"])
    ran = world.status("job")["activeSeconds"]
    assert ran < 6
    world.apply("clock", script("clock", train=[held()]), activeDeadlineSeconds=4)
    world.kubectl_wait("clock", "Failed")
    world.wait("clock", "Failed", reason="DeadlineExceeded")
    ended = datetime.fromisoformat(world.status("clock")["completionTime"])
    assert (ended - suspended).total_seconds() >= 3
    assert world.status("job")["activeSeconds"] == ran
    world.ask("job", suspend=False, activeDeadlineSeconds=600)
    wait_for(lambda: "activeSince" in world.status("job"), "the next pod")
    world.ask("job", suspend=True)
    world.kubectl_wait("job", "Suspended")
    assert world.status("job")["activeSeconds"] >= ran
    world.ask("job", suspend=False)
    world.kubectl_wait("job", "Complete")


def test_the_runtimes_limit_is_the_most_and_the_default(world, limited) -> None:
    world.apply("greedy", runtime=limited, activeDeadlineSeconds=5)
    refused = world.wait("greedy", "Accepted", "False", "LimitExceeded")
    assert "activeDeadlineSeconds is 5" in refused["message"]
    world.apply("job", script("job", train=[held()]), runtime=limited)
    saved(world, "job")
    world.ask("job", activeDeadlineSeconds=3000)
    world.kubectl_wait("job", "Failed")
    failed = world.condition("job", "Failed")
    assert failed["reason"] == "DeadlineExceeded"
    assert (
        f"ran for 4 s, all that FineTuneRuntime {limited} (spec.limits.maxActiveDeadlineSeconds)" in failed["message"]
    )
    world.ask("greedy", activeDeadlineSeconds=None)
    world.kubectl_wait("greedy", "Complete")


# --- after the end ---------------------------------------------------------------------------------------------------


def test_a_final_job_is_deleted_in_time_with_its_children(world) -> None:
    world.apply("done", ttlSecondsAfterFinished=2)
    bad = Failure(code=FailureCode.CONFIG_INVALID, args={"field": "x", "problem": "y"})
    world.apply("failed", script("failed", train=[failing(bad)]))
    world.apply("kept")
    world.kubectl_wait("failed", "Failed")
    world.kubectl_wait("kept", "Complete")
    world.ask("failed", ttlSecondsAfterFinished=1)
    for name in ("done", "failed"):
        world.plane.kubectl("wait", "--for=delete", f"ftj/{name}", "-n", world.namespace, "--timeout=60s")
        wait_for(lambda n=name: gone(world, n), "its children to go")
    assert set(world.children("kept")) == {"kept-prepare", "kept-train"}
    world.ask("kept", ttlSecondsAfterFinished=0)
    wait_for(lambda: gone(world, "kept"), "the job that was to be kept")


def test_it_is_deleted_too_if_the_operator_was_away(world) -> None:
    world.apply("job", ttlSecondsAfterFinished=4)
    world.kubectl_wait("job", "Complete")
    world.operator.kill()
    try:
        assert world.api.get(f"{world.jobs}/job").ok
    finally:
        world.operator.start()
    wait_for(lambda: gone(world, "job"), "the job")


def test_what_is_final_is_final(world) -> None:
    """The children are deleted and the operator starts anew: nothing is made, nothing is said."""
    version = world.version()
    bad = Failure(code=FailureCode.DIVERGED, args={"step": "9", "learningRate": "3"})
    ends = {"complete": None, "failed": [failing(bad)], "cancelled": [held()]}
    for name, train in ends.items():
        world.apply(name, script(name, train=train))
    saved(world, "cancelled")
    world.ask("cancelled", cancel=True)
    for name in ends:
        world.kubectl_wait(name, "Complete" if name == "complete" else "Failed")
    before = {name: world.get(name)["metadata"]["resourceVersion"] for name in ends}
    made = {f"{name}-{stage}": 1 for name in ends for stage in ("prepare", "train")}
    world.plane.kubectl("delete", "job", *made, "-n", world.namespace)
    world.operator.restart()
    world.apply("later")
    world.kubectl_wait("later", "Complete")
    assert world.made_since(version) == {**made, "later-prepare": 1, "later-train": 1}
    assert {name: world.get(name)["metadata"]["resourceVersion"] for name in ends} == before


# --- while it runs ---------------------------------------------------------------------------------------------------


def test_a_vanished_child_is_made_again_from_the_frozen_runtime_though_that_is_gone(world, limited) -> None:
    version = world.version()
    away = {"limits": {"maxActiveDeadlineSeconds": 600}}
    world.api.patch(f"{RUNTIMES}/{limited}", {"spec": {**away, "podTemplate": {"labels": {"team": "a"}}}}).must()
    world.apply("job", script("job", train=[held(), resumed("job")]), runtime=limited)
    saved(world, "job")
    world.api.delete(f"{RUNTIMES}/{limited}").must()
    world.plane.kubectl("delete", "job", "job-train", "-n", world.namespace)
    world.kubectl_wait("job", "Complete")
    assert world.made_since(version) == {"job-prepare": 1, "job-train": 2}
    template = world.children("job")["job-train"]["spec"]["template"]
    assert (template["metadata"]["labels"]["team"], template["spec"]["containers"][0]["image"]) == ("a", "trainer:1")
    status = world.status("job")
    assert (status["restarts"], status["disruptions"]) == (0, 1)
    assert status["attempts"][-1]["resumedFromStep"] == 2
    assert status["resolved"]["runtime"]["name"] == limited


def test_an_eviction_is_free_even_if_it_kills(world) -> None:
    """The eviction API marks the pod as a DisruptionTarget, which podFailurePolicy ignores."""
    world.apply("job", script("job", train=[held(when_stopped=KILLED), resumed("job")]), backoffLimit=0)
    saved(world, "job")
    (pod,) = [p["metadata"]["name"] for p in world.pods("train")]
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod}}
    world.api.post(f"/api/v1/namespaces/{world.namespace}/pods/{pod}/eviction", eviction).must()
    world.kubectl_wait("job", "Complete")
    status = world.status("job")
    assert (status["restarts"], status["disruptions"]) == (0, 1)


CHANGES: dict[str, Any] = {
    "runtime": "another",
    "model": "org/other",
    "trainingFile": "pvc://finetune-data/other.jsonl",
    "validationFile": "pvc://finetune-data/eval.jsonl",
    "suffix": "x",
    "output": {"uri": "pvc://finetune-outputs/x"},
    "hyperparameters": {"seed": 1},
    "trainingMethod": {"type": "DPO"},
    "trainingType": {"type": "Full"},
    "evaluation": {"nEvals": 1},
    "checkpointing": {"nCheckpoints": 2},
    "resources": {"cpu": "2"},
    "data": {"overlong": "Fail"},
    "backoffLimit": 4,
}


def test_after_the_start_only_four_fields_may_change(world) -> None:
    world.apply("job", script("job", train=[held(), resumed("job")]))
    world.wait("job", "Running")
    for field, value in CHANGES.items():
        refused = world.api.patch(f"{world.jobs}/job", {"spec": {field: value}})
        assert "spec is immutable once the job has started: create a new FineTuneJob" in refused.message, field
    other = world.api.patch(f"{world.jobs}/job", {"spec": {"managedBy": "example.com/other"}})
    assert "managedBy is immutable" in other.message
    for values in ({"activeDeadlineSeconds": 900, "ttlSecondsAfterFinished": 900}, {"suspend": True}):
        world.ask("job", **values)
    world.kubectl_wait("job", "Suspended")
    world.ask("job", suspend=False, activeDeadlineSeconds=None, ttlSecondsAfterFinished=None)
    world.kubectl_wait("job", "Complete")


def test_what_another_manages_is_left_alone(world) -> None:
    world.apply("theirs", managedBy="example.com/other", cancel=True, ttlSecondsAfterFinished=0)
    done = {"type": "Complete", "status": "True", "reason": "Done", "message": "", "lastTransitionTime": MOMENT}
    told = {"status": {"startTime": MOMENT, "completionTime": MOMENT, "conditions": [done]}}
    before = world.api.patch(f"{world.jobs}/theirs/status", told).must()
    refused = world.api.patch(f"{world.jobs}/theirs", {"spec": {"managedBy": "finetune.dev/operator"}})
    assert "managedBy is immutable" in refused.message
    world.operator.restart()
    world.apply("ours")
    world.kubectl_wait("ours", "Complete")
    assert world.get("theirs")["metadata"]["resourceVersion"] == before["metadata"]["resourceVersion"]
    assert not world.children("theirs")
