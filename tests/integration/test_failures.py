"""Each cause of a failure, as scheduler, kubelet and node controller write it: the reason, what to do, the record.

Pods that wait or are replaced take seconds, so the jobs run side by side.
"""

from __future__ import annotations

import threading
from typing import Any

import pytest

from finetune_api.failures import Failure, FailureCode
from kubelet import NOW, STARTED, Behaviour, wait_for
from world import failing, progress, script, well

BIND = {"type": "PodScheduled", "status": "True"}
STEPS = (progress(1), progress(2))


def trainer(**state: Any) -> list[dict[str, Any]]:
    """The container's status, as the kubelet writes it."""
    fixed = {"name": "trainer", "image": "trainer:1", "imageID": "", "restartCount": 0}
    return [{**fixed, "ready": "running" in state, "started": "running" in state, "state": state}]


def waits(reason: str, message: str) -> dict[str, Any]:
    """A pod on a node whose container cannot start."""
    return {
        "phase": "Pending",
        "conditions": [BIND],
        "containerStatuses": trainer(waiting={"reason": reason, "message": message}),
    }


def disrupted(reason: str, message: str = "") -> dict[str, Any]:
    """What Kubernetes sets on a pod that is not to blame."""
    return {
        "type": "DisruptionTarget",
        "status": "True",
        "reason": reason,
        "message": message,
        "lastTransitionTime": NOW,
    }


def ended(code: int, reason: str = "Error", message: str = "") -> list[dict[str, Any]]:
    """A container that has ended."""
    times = {"startedAt": STARTED, "finishedAt": NOW}
    return trainer(
        terminated={"exitCode": code, "reason": reason, **times, **({"message": message} if message else {})}
    )


NO_GPU = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu. preemption: not eligible."
UNSCHEDULED = {
    "phase": "Pending",
    "conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": NO_GPU}],
}
BACK_OFF = 'Back-off pulling image "registry/trainer:9": ErrImagePull: not found'
STUCK = {
    "image": (waits("ImagePullBackOff", BACK_OFF), "ImagePullFailed", 'image "registry/trainer:9"'),
    "pull": (waits("ErrImagePull", "401 Unauthorized"), "ImagePullFailed", "and have the credentials for it"),
    "name": (waits("InvalidImageName", "couldn't parse"), "ImagePullFailed", "mend spec.image of the FineTuneRuntime"),
    "never": (waits("ErrImageNeverPull", "not present"), "ImagePullFailed", "load the image on the nodes"),
    "node": (
        UNSCHEDULED,
        "Unschedulable",
        "Insufficient nvidia.com/gpu. preemption: not eligible; lower spec.resources",
    ),
    "config": (waits("CreateContainerConfigError", 'configmap "env" not found'), "ContainerConfigError", "podTemplate"),
    "secret": (waits("CreateContainerConfigError", 'secret "finetune-hf" not found'), "SecretNotFound", "create it"),
    "key": (
        waits("CreateContainerConfigError", "couldn't find key token in Secret ns/finetune-hf"),
        "SecretNotFound",
        "Secret finetune-hf in namespace {namespace} has no key token: add it",
    ),
}
"""Name of the job: what its pod is told, the reason, and words of the sentence."""


@pytest.fixture(scope="module")
def stuck(shared_world):
    """Jobs whose prepare pod never starts."""
    for name, (status, _reason, _words) in STUCK.items():
        behaviour = Behaviour(before=status, homeless=name == "node")
        shared_world.apply(name, script(name, prepare=behaviour), startTimeoutSeconds=10)
    return shared_world


@pytest.mark.parametrize("name", STUCK)
def test_a_pod_that_cannot_start_says_why_and_ends_in_time(stuck, name) -> None:
    _status, reason, words = STUCK[name]
    failed = stuck.wait(name, "Failed", reason="StartTimeout", seconds=90)
    assert failed["message"].startswith("nothing ran within 10 s (startTimeoutSeconds): pod ")
    assert words.format(namespace=stuck.namespace) in failed["message"]
    assert stuck.condition(name, "DataReady")["reason"] == "StartTimeout"
    (told,) = events(stuck, name, reason)
    assert (told["type"], words.format(namespace=stuck.namespace) in told["message"]) == ("Warning", True)
    status = stuck.status(name)
    assert (status.get("attempts", []), status["restarts"]) == ([], 0)
    assert list(stuck.children(name)) == [f"{name}-prepare"], "no GPU was asked for"
    wait_for(lambda: not [p for p in stuck.pods("prepare") if p["metadata"]["name"].startswith(f"{name}-")], "no pod")


def events(world: Any, name: str, reason: str) -> list[dict[str, Any]]:
    """The events of a job with that reason."""
    listed = world.api.get(f"/api/v1/namespaces/{world.namespace}/events").must()["items"]
    return [e for e in listed if (e["involvedObject"]["name"], e["reason"]) == (name, reason)]


def test_a_secret_that_appears_lets_the_pod_start(world) -> None:
    there = threading.Event()
    missing = waits("CreateContainerConfigError", 'secret "finetune-hf" not found')
    world.apply("late", script("late", prepare=Behaviour(before=missing, until=there)))
    told = world.wait("late", "DataReady", "False", "SecretNotFound")
    assert f"there is no Secret finetune-hf in namespace {world.namespace}: create it" in told["message"]
    there.set()
    world.wait("late", "Complete")


LOW = "The node was low on resource: memory. Threshold quantity: 100Mi, available: 9Mi. "
LIMIT = "Pod ephemeral local storage usage exceeds the total limit of containers 1Gi. "
SILENT_NODE = {
    "conditions": [BIND, {"type": "Ready", "status": "False"}, {"type": "ContainersReady", "status": "True"}]
}
ENDS = {
    "pressed": (
        {
            "phase": "Failed",
            "reason": "Evicted",
            "message": LOW,
            "conditions": [disrupted("TerminationByKubelet", LOW)],
            "containerStatuses": ended(137),
        },
        ("Evicted", 137, 0, 1),
        "short of memory or disk, or shut down: The node was low on resource: memory",
    ),
    "written": (
        {"phase": "Failed", "reason": "Evicted", "message": LIMIT, "containerStatuses": ended(137)},
        ("Evicted", 137, 1, 0),
        "was evicted: Pod ephemeral local storage usage exceeds the total limit of containers 1Gi",
    ),
    "hungry": (
        {"phase": "Failed", "containerStatuses": ended(137, "OOMKilled")},
        ("OOMKilled", 137, 1, 0),
        "raise resources.memory",
    ),
    "orphaned": (
        {"phase": "Failed", "conditions": [disrupted("DeletionByPodGC", "PodGC: node no longer exists")]},
        ("NodeLost", None, 0, 1),
        "lost with its node, which is gone",
    ),
    "tainted": (
        {"phase": "Failed", "conditions": [disrupted("DeletionByTaintManager")], "containerStatuses": ended(137)},
        ("NodeLost", 137, 0, 1),
        "did not answer or bears a NoExecute taint",
    ),
    "outranked": (
        {"phase": "Failed", "conditions": [disrupted("PreemptionByScheduler")], "containerStatuses": ended(137)},
        ("Preempted", 137, 0, 1),
        "a pod of higher priority",
    ),
    "drained": (
        {"phase": "Failed", "conditions": [disrupted("EvictionByEvictionAPI")], "containerStatuses": ended(3)},
        ("Evicted", 3, 0, 1),
        "evicted by request",
    ),
    "unplugged": (
        {"phase": "Failed", "reason": "UnexpectedAdmissionError", "message": "Allocate failed: no GPU"},
        ("UnexpectedAdmissionError", None, 1, 0),
        "ended by its node (UnexpectedAdmissionError: Allocate failed: no GPU)",
    ),
    "crashed": (
        {"phase": "Failed", "containerStatuses": ended(1)},
        ("NoFinalReport", 1, 1, 0),
        "with exit code 1 and left no report",
    ),
}
"""Name of the job: how its first training pod ends; reason, exit code, restarts, disruptions; words of the event."""


@pytest.fixture(scope="module")
def replaced(shared_world):
    """Jobs whose first training pod ends badly and whose second does well."""
    for name, (status, _record, _words) in ENDS.items():
        lost = (SILENT_NODE,) if name == "orphaned" else ()
        first = Behaviour(STEPS, seconds=0.8, after=(*lost, status))
        shared_world.apply(name, script(name, train=[first, well(name)]), backoffLimit=1)
    return shared_world


@pytest.mark.parametrize("name", ENDS)
def test_an_end_that_is_retried_has_its_record_and_its_event(replaced, name) -> None:
    _status, (reason, code, restarts, disruptions), words = ENDS[name]
    replaced.wait(name, "Complete", seconds=120)
    status = replaced.status(name)
    assert (status["restarts"], status["disruptions"]) == (restarts, disruptions)
    first = status["attempts"][-2]
    assert (first["reason"], first.get("exitCode")) == (reason, code)
    assert status["attempts"][-1]["reason"] == "Succeeded"
    assert first["startTime"] <= first["endTime"] <= status["attempts"][-1]["startTime"]
    assert [words in e["message"] for e in events(replaced, name, reason)].count(True) == 1


def test_a_node_that_does_not_answer_is_told_before_it_is_gone(world) -> None:
    running = {**SILENT_NODE, "phase": "Running"}
    answers = {"conditions": [BIND, {"type": "Ready", "status": "True"}, {"type": "ContainersReady", "status": "True"}]}
    lost = Behaviour(STEPS, seconds=1.5, after=(running, answers, {"phase": "Failed", "containerStatuses": ended(11)}))
    world.apply("lost", script("lost", train=[lost]))
    told = world.wait("lost", "Running", "False", "NodeLost")
    assert "its node node does not answer" in told["message"]
    world.wait("lost", "Running", "True")
    assert world.status("lost")["disruptions"] == 0


FINAL = {
    "full": (FailureCode.STORAGE_FULL, {"uri": "pvc://finetune-outputs"}, "StorageFull", "no space is left at pvc://"),
    "gone": (
        FailureCode.CHECKPOINT_MISSING,
        {"uri": "pvc://a"},
        "CheckpointInvalid",
        "pvc://a does not exist any more",
    ),
    "unread": (
        FailureCode.DATA_UNREACHABLE,
        {"uri": "pvc://a", "problem": "no such file"},
        "DataUnreachable",
        "pvc://a could not be read: no such file",
    ),
    "skewed": (
        FailureCode.CONFIG_UNREADABLE,
        {"field": "x", "problem": "y"},
        "Internal",
        "of the operator's own version",
    ),
}


@pytest.mark.parametrize("name", FINAL)
def test_a_cause_that_the_trainer_names_is_final_with_its_sentence(world, name) -> None:
    code, arguments, reason, words = FINAL[name]
    failure = Failure(code=code, args=arguments)
    word = {"job_uid": ""} if code is FailureCode.CONFIG_UNREADABLE else {}
    world.apply(name, script(name, prepare=failing(failure, word=word)), backoffLimit=0)
    failed = world.wait(name, "Failed", reason=reason)
    assert words in failed["message"]
    assert world.condition(name, "DataReady")["reason"] == reason
    (attempt,) = world.status(name)["attempts"]
    assert (attempt["reason"], attempt["exitCode"]) == (code.value, int(failure.exit_code))


def test_an_output_that_cannot_be_written_is_told_before_anything_trains(world) -> None:
    args = {"uri": "pvc://finetune-outputs", "problem": "Permission denied"}
    locked = failing(Failure(code=FailureCode.OUTPUT_NOT_WRITABLE, args=args))
    world.apply("locked", script("locked", prepare=locked), backoffLimit=0)
    failed = world.wait("locked", "Failed", reason="PublishFailed")
    assert "pvc://finetune-outputs cannot be written: Permission denied" in failed["message"]
    assert world.condition("locked", "DataReady")["reason"] == "OutputNotWritable"
    assert set(world.children("locked")) == {"locked-prepare"}


def test_an_exit_code_that_nobody_knows_is_no_fault_of_the_user(world) -> None:
    world.apply("odd", script("odd", train=[Behaviour(exit_code=17, silent=True)]))
    failed = world.wait("odd", "Failed", reason="Internal")
    assert "with exit code 17 and left no report, which this operator does not know" in failed["message"]
    assert len(world.pods("train")) == 1


def quota(world: Any, hard: dict[str, str]) -> str:
    """A quota as its controller would have it; this control plane runs none."""
    path = f"/api/v1/namespaces/{world.namespace}/resourcequotas"
    world.api.post(path, {"metadata": {"name": "quota"}, "spec": {"hard": hard}}).must()
    used = {"status": {"hard": hard, "used": dict.fromkeys(hard, "0")}}
    world.api.patch(f"{path}/quota/status", used).must()
    return f"{path}/quota"


def test_a_job_that_a_quota_refuses_says_so_once_and_starts_when_there_is_room(world) -> None:
    path = quota(world, {"count/jobs.batch": "0"})
    world.apply("many")
    told = world.wait("many", "DataReady", "False", "Pending")
    wait_for(lambda: "exceeded quota" in world.condition("many", "DataReady")["message"], "the refusal")
    told = world.condition("many", "DataReady")["message"]
    assert told.startswith("the API server refused Job many-prepare: ")
    wait_for(lambda: len(events(world, "many", "ChildRefused")) == 1, "its event")
    world.api.delete(path).must()
    world.wait("many", "Complete", seconds=60)
    assert len(events(world, "many", "ChildRefused")) == 1


@pytest.mark.parametrize(
    ("hard", "words"),
    [
        ({"count/jobs.batch": "0"}, "the API server refused Job few-prepare: "),
        ({"pods": "0"}, "Job few-prepare has no pod yet"),
    ],
    ids=["jobs", "pods"],
)
def test_what_a_quota_refuses_for_too_long_ends_in_time(world, hard, words) -> None:
    quota(world, hard)
    world.apply("few", startTimeoutSeconds=4)
    failed = world.wait("few", "Failed", reason="StartTimeout", seconds=60)
    assert f"nothing ran within 4 s (startTimeoutSeconds): {words}" in failed["message"]
