"""Suspend and cancel in every state, as a user asks for them and reads what became of it."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from finetune_api.trainer import Stage
from kubelet import KILLED, Behaviour, Script, wait_for
from world import PREPARED, World, progress, published, script, well

STEPS = (progress(1), progress(2))


def resumed(name: str) -> Behaviour:
    """A pod that goes on from step 2."""
    return Behaviour(({**progress(3), "resumed_from_step": 2},), word=published(name))


def held(**more: Any) -> Behaviour:
    """A training pod that saves two steps and goes on until it is stopped."""
    return Behaviour(STEPS, until=threading.Event(), **more)


def prepares(*behaviours: Behaviour) -> Script:
    """What the first, second, ... prepare pod does; training does well."""

    def behave(stage: Stage, attempt: int) -> Behaviour:
        return behaviours[min(attempt, len(behaviours) - 1)] if stage is Stage.PREPARE else well("job")

    return behave


def pods_at_work(world: World, stage: str) -> list[str]:
    """Names of the stage's pods that have not ended."""
    return [p["metadata"]["name"] for p in world.pods(stage) if p["status"]["phase"] not in ("Succeeded", "Failed")]


def saved(world: World, name: str) -> None:
    """Wait until a state is saved at step 2."""
    wait_for(lambda: world.status(name).get("recovery", {}).get("step") == 2, "a recovery state", 90)


def phase(world: World, name: str) -> str:
    """What `kubectl get` shows."""
    return world.plane.kubectl("get", "ftj", name, "-n", world.namespace, "--no-headers").split()[1]


def job_of(world: World, name: str) -> dict[str, Any]:
    """A child by its name."""
    return world.api.get(f"/apis/batch/v1/namespaces/{world.namespace}/jobs/{name}").must()


# --- suspend ---------------------------------------------------------------------------------------------------------


def test_suspended_before_the_start_it_is_checked_and_may_be_changed(world) -> None:
    world.apply("job", suspend=True, trainingFile="pvc://finetune-later/t.jsonl")
    world.wait("job", "Accepted", "False", "ClaimNotFound")
    world.kubectl_wait("job", "Suspended")
    world.claim("finetune-later")
    world.wait("job", "Accepted")
    world.ask("job", hyperparameters={"learningRate": 0.001})
    assert (phase(world, "job"), world.children("job")) == ("Suspended", {})
    assert "startTime" not in world.status("job")
    world.ask("job", suspend=False)
    world.kubectl_wait("job", "Complete")
    assert world.condition("job", "Suspended")["status"] == "False"


def test_suspended_while_the_data_is_prepared(world) -> None:
    world.apply("job", prepares(Behaviour(until=threading.Event()), Behaviour((PREPARED,))))
    wait_for(lambda: pods_at_work(world, "prepare"), "the prepare pod")
    world.ask("job", suspend=True)
    world.kubectl_wait("job", "Suspended")
    assert not pods_at_work(world, "prepare")
    assert world.condition("job", "DataReady")["reason"] == "Suspended"
    assert set(world.children("job")) == {"job-prepare"}
    world.ask("job", suspend=False)
    world.kubectl_wait("job", "Complete")
    status = world.status("job")
    assert (status["restarts"], status["disruptions"]) == (0, 0)
    assert world.condition("job", "Suspended")["reason"] == "Resumed"


def test_suspended_between_the_stages_nothing_trains(world) -> None:
    """The data is ready while no operator looks; the train Job would be the next thing it makes."""
    hold, version = threading.Event(), world.version()
    world.apply("job", prepares(Behaviour((PREPARED,), until=hold)))
    wait_for(lambda: pods_at_work(world, "prepare"), "the prepare pod")
    world.operator.kill()
    try:
        hold.set()
        wait_for(lambda: job_of(world, "job-prepare")["status"].get("succeeded"), "the end of the prepare Job")
        world.ask("job", suspend=True)
    finally:
        world.operator.start()
    world.kubectl_wait("job", "Suspended")
    assert world.condition("job", "DataReady")["status"] == "True"
    assert world.made_since(version) == {"job-prepare": 1}
    world.ask("job", suspend=False)
    world.kubectl_wait("job", "Complete")


def test_suspended_in_training_it_goes_on_from_its_state(world) -> None:
    version = world.version()
    world.apply("job", script("job", train=[held(), resumed("job")]))
    saved(world, "job")
    assert "activeSince" in world.status("job")
    world.ask("job", suspend=True)
    world.kubectl_wait("job", "Suspended")
    status = world.status("job")
    assert (phase(world, "job"), pods_at_work(world, "train")) == ("Suspended", [])
    assert "activeSince" not in status
    assert status["activeSeconds"] >= 0
    told = world.condition("job", "Suspended")
    assert told["reason"] == "UserRequested"
    assert told["message"] == "suspended; saved at step 2; set spec.suspend to false to go on"
    assert world.condition("job", "Running")["status"] == "False"
    world.operator.restart()
    assert job_of(world, "job-train")["spec"]["suspend"]
    world.ask("job", suspend=False)
    world.kubectl_wait("job", "Complete")
    status = world.status("job")
    assert (status["restarts"], status["disruptions"]) == (0, 0)
    assert [a.get("resumedFromStep") for a in status["attempts"]][-2:] == [0, 2]
    assert world.made_since(version) == {"job-prepare": 1, "job-train": 1}


def test_a_pod_that_our_stop_kills_never_fails_the_job(world) -> None:
    """Neither our count nor the Job controller's own is used up, though no retry at all is allowed."""
    world.apply("job", script("job", train=[held(when_stopped=KILLED)] * 2 + [resumed("job")]), backoffLimit=0)
    for pods in (1, 2):
        wait_for(lambda n=pods: len(world.status("job").get("attempts", [])) == 1 + n, "a training pod")
        wait_for(lambda: world.condition("job", "Running").get("status") == "True", "a training pod that runs")
        world.ask("job", suspend=True)
        world.kubectl_wait("job", "Suspended")
        assert not any(c["type"] == "Failed" for c in job_of(world, "job-train")["status"]["conditions"])
        world.ask("job", suspend=False)
    world.kubectl_wait("job", "Complete")
    status = world.status("job")
    assert (status["restarts"], status["disruptions"]) == (0, 0)
    assert [a["exitCode"] for a in status["attempts"]] == [0, KILLED, KILLED, 0]


def test_who_else_suspends_or_resumes_a_child(world) -> None:
    world.apply("job", script("job", train=[held(), held(), resumed("job")]))
    saved(world, "job")
    child = f"/apis/batch/v1/namespaces/{world.namespace}/jobs/job-train"
    world.api.patch(child, {"spec": {"suspend": True}}).must()
    theirs = world.wait("job", "Running", "False", "Pending")
    assert "is suspended, and not by this operator" in theirs["message"]
    assert job_of(world, "job-train")["spec"]["suspend"], "it stays theirs"
    world.api.patch(child, {"spec": {"suspend": False}}).must()
    world.wait("job", "Running")
    world.ask("job", suspend=True)
    world.kubectl_wait("job", "Suspended")
    world.api.patch(child, {"spec": {"suspend": False}}).must()
    wait_for(lambda: job_of(world, "job-train")["spec"]["suspend"], "it to be held again")
    world.kubectl_wait("job", "Suspended")
    world.ask("job", suspend=False)
    world.kubectl_wait("job", "Complete")
    assert world.status("job")["restarts"] == 0


def test_a_child_that_vanishes_while_suspended_is_made_again_on_resume(world) -> None:
    version = world.version()
    world.apply("job", script("job", train=[held(), resumed("job")]))
    saved(world, "job")
    world.ask("job", suspend=True)
    world.kubectl_wait("job", "Suspended")
    world.plane.kubectl("delete", "job", "job-train", "-n", world.namespace)
    world.operator.restart()
    world.apply("other")
    world.kubectl_wait("other", "Complete")
    assert "job-train" not in world.children("job")
    assert world.made_since(version)["job-train"] == 1
    world.ask("job", suspend=False)
    world.kubectl_wait("job", "Complete")
    assert world.made_since(version)["job-train"] == 2


# --- cancel ----------------------------------------------------------------------------------------------------------


def cancelled(world: World, name: str) -> dict[str, Any]:
    """Cancel, and wait as a user does; the Failed condition."""
    world.ask(name, cancel=True)
    world.kubectl_wait(name, "Failed")
    assert phase(world, name) == "Cancelled"
    condition = world.condition(name, "Failed")
    assert condition["reason"] == "Cancelled"
    return condition


@pytest.mark.parametrize("spec", [{}, {"runtime": "not-there"}])
def test_cancel_while_suspended_before_the_start(world, spec) -> None:
    world.apply("job", suspend=True, **spec)
    world.kubectl_wait("job", "Suspended")
    cancelled(world, "job")
    assert world.condition("job", "Suspended")["status"] == "False"
    assert not world.children("job")


def test_cancel_while_the_data_is_prepared(world) -> None:
    world.apply("job", prepares(Behaviour(until=threading.Event())))
    wait_for(lambda: pods_at_work(world, "prepare"), "the prepare pod")
    assert cancelled(world, "job")["message"] == "cancelled; no state was saved"
    assert not pods_at_work(world, "prepare")
    assert set(world.children("job")) == {"job-prepare"}


def test_cancel_while_suspended_in_training(world) -> None:
    world.apply("job", script("job", train=[held()]))
    saved(world, "job")
    world.ask("job", suspend=True)
    world.kubectl_wait("job", "Suspended")
    uid = world.get("job")["metadata"]["uid"]
    assert cancelled(world, "job")["message"].endswith(f"saved at step 2; its state is kept at {where(world, uid)}")
    assert world.condition("job", "Suspended")["status"] == "False"
    world.ask("job", suspend=False)
    generation = world.get("job")["metadata"]["generation"]
    wait_for(lambda: world.status("job")["observedGeneration"] == generation, "the change to be seen")
    assert (phase(world, "job"), pods_at_work(world, "train")) == ("Cancelled", [])


def where(world: World, uid: str) -> str:
    """The job's private state, at the default runtime's output."""
    runtime = world.api.get("/apis/finetune.dev/v1alpha1/finetuneruntimes/default").must()
    target = runtime["spec"]["defaults"]["output"]["uri"].replace("{namespace}", world.namespace)
    return f"{target.replace('{name}', 'job')}/.finetune/{uid}"


def test_work_that_is_done_when_the_stop_comes_is_complete(world) -> None:
    """The Job controller counts no pod of a Job that is held: the pod's own last word stands."""
    world.apply("job", script("job", train=[held(when_stopped=0, word=published("job"))]))
    saved(world, "job")
    world.ask("job", cancel=True)
    world.kubectl_wait("job", "Complete")
    assert (phase(world, "job"), world.condition("job", "Complete")["reason"]) == ("Completed", "Succeeded")
    assert [c["name"] for c in world.status("job")["checkpoints"]] == ["job:4"]


def test_a_cancel_after_the_end_changes_nothing(world) -> None:
    world.apply("job")
    world.kubectl_wait("job", "Complete")
    before = world.get("job")
    world.ask("job", cancel=True)
    generation = before["metadata"]["generation"] + 1
    wait_for(lambda: world.status("job")["observedGeneration"] == generation, "the cancel to be seen")
    world.kubectl_wait("job", "Complete")
    after = world.status("job")
    assert [(c["type"], c["status"], c["reason"]) for c in after["conditions"]] == [
        (c["type"], c["status"], c["reason"]) for c in before["status"]["conditions"]
    ]
    assert after["phase"] == "Completed"
