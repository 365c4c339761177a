"""How a job ends when it does not go well: retries that count and those that do not, cancel, deletion."""

from __future__ import annotations

import threading

import pytest

from finetune_api.failures import Failure, FailureCode
from kubelet import Behaviour, wait_for
from world import failing, progress, published, script, well


def resumed(name: str) -> Behaviour:
    """A pod that goes on from step 2."""
    return Behaviour(({**progress(3), "resumed_from_step": 2},), word=published(name))


@pytest.fixture(scope="module")
def retried(shared_world):
    """Jobs whose pods are replaced. The Job controller waits ten seconds before it does, so they wait side by side."""
    fails, until = Behaviour(exit_code=1, silent=True), threading.Event()
    stopped = Failure(code=FailureCode.STOPPED, args={"step": "2"})
    steps = (progress(1), progress(2))
    pods = {
        "flaky": [fails, well("flaky")],
        "broken": [fails],
        "moved": [Behaviour(steps, failure=stopped), resumed("moved")],
        "again": [Behaviour(steps, until=until), resumed("again")],
        "hungry": [Behaviour((progress(1),), killed_for="OOMKilled")],
    }
    for name, train in pods.items():
        limit = {"hungry": 3, "flaky": 1, "broken": 1}.get(name, 0)
        shared_world.apply(name, script(name, train=train), backoffLimit=limit)
    return shared_world


def training_pods(world, name: str) -> list[str]:
    """Names of the job's training pods."""
    every = [pod["metadata"]["name"] for pod in world.pods("train")]
    return [pod for pod in every if pod.startswith(f"{name}-train-")]


def test_a_deleted_pod_is_replaced_and_goes_on(retried) -> None:
    wait_for(lambda: retried.status("again").get("recovery", {}).get("step") == 2, "a recovery state")
    (pod,) = training_pods(retried, "again")
    retried.plane.kubectl("delete", "pod", pod, "-n", retried.namespace, "--wait=false")
    retried.wait("again", "Complete", seconds=60)
    status = retried.status("again")
    assert (status["restarts"], status["disruptions"]) == (0, 1)
    assert status["attempts"][-1]["resumedFromStep"] == 2


def test_failures_are_retried_and_counted(retried) -> None:
    retried.wait("flaky", "Complete", seconds=60)
    status = retried.status("flaky")
    assert (status["restarts"], status["disruptions"]) == (1, 0)
    assert [a["exitCode"] for a in status["attempts"]] == [0, 1, 0]


def test_retries_end_at_the_backoff_limit(retried) -> None:
    failed = retried.wait("broken", "Failed", reason="BackoffLimitExceeded", seconds=60)
    assert retried.status("broken")["restarts"] == 1
    assert len(training_pods(retried, "broken")) == 2
    assert failed["message"]


def test_a_stop_from_outside_is_free(retried) -> None:
    retried.wait("moved", "Complete", seconds=60)
    status = retried.status("moved")
    assert (status["restarts"], status["disruptions"]) == (0, 1)
    assert [a.get("resumedFromStep") for a in status["attempts"]][-2:] == [0, 2]
    assert status["attempts"][-2]["reason"] == "Stopped"


def test_killed_for_memory_twice_at_the_same_step(retried) -> None:
    failed = retried.wait("hungry", "Failed", reason="OutOfMemory", seconds=60)
    assert "memory" in failed["message"]
    assert len(training_pods(retried, "hungry")) <= 2


@pytest.mark.parametrize(
    ("failure", "reason", "words"),
    [
        (Failure(code=FailureCode.DIVERGED, args={"step": "9", "learningRate": "3"}), "Diverged", "at step 9"),
        (Failure(code=FailureCode.CONFIG_INVALID, args={"field": "x", "problem": "y"}), "UserError", "invalid at x: y"),
        (Failure(code=FailureCode.MODEL_NOT_FOUND, args={"uri": "hf://a/b"}), "ModelUnavailable", "hf://a/b"),
        (Failure(code=FailureCode.CHECKPOINT_CHANGED, args={"uri": "pvc://a"}), "CheckpointInvalid", "another digest"),
        (Failure(code=FailureCode.OUT_OF_MEMORY, args={"tokens": "99", "device": "CPU"}), "OutOfMemory", "99 tokens"),
    ],
    ids=lambda value: value if isinstance(value, str) and " " not in value else "",
)
def test_what_the_user_must_mend_is_final_at_once(world, failure, reason, words) -> None:
    world.apply("mine", script("mine", train=[failing(failure)]))
    failed = world.wait("mine", "Failed", reason=reason)
    assert words in failed["message"]
    assert world.status("mine")["phase"] == "Failed"
    assert len(world.pods("train")) == 1


def test_a_failed_publish_keeps_its_reason_when_retries_are_over(world) -> None:
    full = Failure(code=FailureCode.STORAGE_FULL, args={"uri": "pvc://finetune-outputs/x"})
    word = {"checkpoints": published("full", step=2)["checkpoints"]}
    world.apply("full", script("full", train=[failing(full, word=word)]), backoffLimit=0)
    failed = world.wait("full", "Failed", reason="StorageFull")
    assert "no space is left at pvc://finetune-outputs/x" in failed["message"]
    assert world.condition("full", "Published")["reason"] == "UploadFailed"
    assert [c["step"] for c in world.status("full")["checkpoints"]] == [2], "usable by fromCheckpoint"


def test_cancel_saves_stops_and_keeps_the_record(world) -> None:
    world.apply("enough", script("enough", train=[Behaviour((progress(1), progress(2)), until=threading.Event())]))
    wait_for(lambda: world.status("enough").get("recovery", {}).get("step") == 2, "a recovery state")
    world.api.patch(f"{world.jobs}/enough", {"spec": {"cancel": True}}).must()
    failed = world.wait("enough", "Failed", reason="Cancelled")
    assert "2" in failed["message"], "the step of the saved state"
    assert world.status("enough")["phase"] == "Cancelled"
    assert all(pod["status"]["phase"] in ("Succeeded", "Failed") for pod in world.pods("train"))
    refused = world.api.patch(f"{world.jobs}/enough", {"spec": {"cancel": False}})
    assert "cancel cannot be taken back" in refused.message


def test_cancel_before_the_start(world) -> None:
    world.apply("never", runtime="not-there")
    world.wait("never", "Accepted", "False")
    world.api.patch(f"{world.jobs}/never", {"spec": {"cancel": True}}).must()
    world.wait("never", "Failed", reason="Cancelled")
    assert not world.children("never")


def test_a_deleted_job_takes_its_children_along(world) -> None:
    world.apply("gone", script("gone", train=[Behaviour((progress(1),), until=threading.Event())]))
    world.wait("gone", "Running")
    world.plane.kubectl("delete", "ftj", "gone", "-n", world.namespace)
    wait_for(lambda: not world.children("gone"), "the Jobs to go")
    wait_for(lambda: not world.pods("train") and not world.pods("prepare"), "the pods to go")


def test_deleted_and_applied_again_starts_afresh(world) -> None:
    hold = Behaviour((progress(1), progress(2)), until=threading.Event())
    first = world.apply("twice", script("twice", train=[hold]))
    wait_for(lambda: world.status("twice").get("recovery"), "a recovery state")
    old = world.children("twice")
    world.plane.kubectl("delete", "ftj", "twice", "-n", world.namespace, "--wait=false")
    second = world.apply("twice", hyperparameters={"learningRate": 0.001})
    world.wait("twice", "Complete", seconds=60)
    assert first != second
    new = world.children("twice")
    assert not {j["metadata"]["uid"] for j in old.values()} & {j["metadata"]["uid"] for j in new.values()}
    for child in new.values():
        assert child["metadata"]["ownerReferences"][0]["uid"] == second
        assert child["metadata"]["labels"]["finetune.dev/job-uid"] == second
    assert world.status("twice")["outputName"].endswith(second[:8])


@pytest.mark.parametrize(
    ("waiting", "reason"),
    [("ImagePullBackOff", "ImagePullFailed"), ("CreateContainerConfigError", "ContainerConfigError")],
)
def test_a_pod_that_cannot_start_says_why(world, waiting, reason) -> None:
    world.apply("stuck", script("stuck", prepare=Behaviour(waiting=waiting)))
    told = world.wait("stuck", "DataReady", "False", reason)
    assert waiting in told["message"]
    world.api.patch(f"{world.jobs}/stuck", {"spec": {"cancel": True}}).must()
    world.wait("stuck", "Failed", reason="Cancelled")
