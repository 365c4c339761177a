"""Reading Jobs and pods as the API server writes them."""

from __future__ import annotations

from typing import Any

import pytest

from finetune_api.status import Reason
from finetune_operator.plan import seen

OWNER = {"kind": "Job", "name": "tune-train", "uid": "uid-of-job", "controller": True}


def pod_manifest(status: dict[str, Any], **metadata: Any) -> dict[str, Any]:
    return {
        "metadata": {
            "name": "p",
            "uid": "u",
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "ownerReferences": [OWNER],
            **metadata,
        },
        "spec": {},
        "status": status,
    }


def container(**state: Any) -> list[dict[str, Any]]:
    """The trainer's status, behind a sidecar that an admission hook may have added."""
    return [{"name": "sidecar", "state": {"running": {}}}, {"name": "trainer", "state": state}]


def test_a_pod_that_waits_says_why():
    pod = seen.pod(
        pod_manifest({"phase": "Pending", "containerStatuses": container(waiting={"reason": "PodInitializing"})})
    )
    assert (pod.waiting.reason, pod.running, pod.ended, pod.started) == (Reason.INITIALIZING, False, None, None)


def test_a_running_pod_has_an_address():
    status = {
        "phase": "Running",
        "podIP": "10.0.0.7",
        "containerStatuses": container(running={"startedAt": "2026-01-01T00:00:05Z"}),
    }
    pod = seen.pod(pod_manifest(status))
    assert (pod.running, pod.ip, pod.job_uid, pod.started) == (True, "10.0.0.7", "uid-of-job", "2026-01-01T00:00:05Z")
    assert not pod.leaving
    going = seen.pod(pod_manifest(status, deletionTimestamp="2026-01-01T00:01:00Z"))
    assert (going.running, going.leaving, going.ended) == (False, True, None)
    gone = seen.pod(pod_manifest(status, deletionTimestamp="2026-01-01T00:01:00Z"), gone=True)
    assert (gone.running, gone.leaving, gone.ended) == (False, False, "2026-01-01T00:01:00Z")


def test_an_ended_pod_has_exit_code_cause_and_last_word():
    end = {
        "exitCode": 137,
        "reason": "OOMKilled",
        "message": "{}",
        "startedAt": "2026-01-01T00:00:05Z",
        "finishedAt": "2026-01-01T00:09:00Z",
    }
    pod = seen.pod(pod_manifest({"phase": "Failed", "containerStatuses": container(terminated=end)}))
    assert (pod.exit_code, pod.cause, pod.last_word) == (137, "OOMKilled", "{}")
    assert (pod.started, pod.ended) == ("2026-01-01T00:00:05Z", "2026-01-01T00:09:00Z")


def test_error_is_no_cause():
    end = {"exitCode": 1, "reason": "Error", "finishedAt": "2026-01-01T00:09:00Z"}
    pod = seen.pod(pod_manifest({"phase": "Failed", "containerStatuses": container(terminated=end)}))
    assert pod.cause is None


def test_an_evicted_pod_never_ran_and_is_over():
    disruption = {"type": "DisruptionTarget", "status": "True", "reason": "TerminationByKubelet"}
    pod = seen.pod(pod_manifest({"phase": "Failed", "reason": "Evicted", "conditions": [disruption]}))
    assert (pod.exit_code, pod.cause, pod.disrupted, pod.started) == (None, "Evicted", "TerminationByKubelet", None)
    assert pod.ended == "2026-01-01T00:00:00Z", "its creation: nothing else is known"


def test_a_pod_without_an_end_of_its_container_ended_when_its_status_last_changed():
    lost = {"type": "DisruptionTarget", "status": "True", "reason": "DeletionByPodGC"}
    states = [{"type": "Ready", "status": "False", "lastTransitionTime": "2026-01-01T02:00:00Z"}]
    disruption = {**lost, "lastTransitionTime": "2026-01-01T02:05:00Z"}
    running = container(running={"startedAt": "2026-01-01T00:00:05Z"})
    status = {"phase": "Failed", "conditions": [disruption, *states], "containerStatuses": running}
    pod = seen.pod(pod_manifest(status))
    assert (pod.started, pod.ended) == ("2026-01-01T00:00:05Z", "2026-01-01T02:05:00Z")
    assert (pod.running, pod.waiting) == (False, None)


def test_the_runtimes_words_about_a_container_that_never_started_are_no_last_word():
    end = {
        "exitCode": 128,
        "reason": "StartError",
        "message": 'exec: "finetune": not found',
        "finishedAt": "2026-01-01T00:09:00Z",
    }
    pod = seen.pod(pod_manifest({"phase": "Failed", "containerStatuses": container(terminated=end)}))
    assert (pod.cause, pod.node_said, pod.last_word) == ("StartError", 'exec: "finetune": not found', "")


def test_a_container_that_never_started_began_at_no_time():
    """The kubelet writes the beginning of all time for it, from which on it would have run."""
    end = {
        "exitCode": 128,
        "reason": "StartError",
        "startedAt": "1970-01-01T00:00:00Z",
        "finishedAt": "2026-01-01T00:09:00Z",
    }
    pod = seen.pod(pod_manifest({"phase": "Failed", "containerStatuses": container(terminated=end)}))
    assert (pod.started, pod.ended) == (None, "2026-01-01T00:09:00Z")


def test_a_pod_on_a_node_that_does_not_answer_runs_no_more():
    conditions = [{"type": "Ready", "status": "False"}, {"type": "ContainersReady", "status": "True"}]
    status = {"phase": "Running", "conditions": conditions, "containerStatuses": container(running={})}
    pod = seen.pod(pod_manifest(status))
    assert (pod.running, pod.ended, pod.waiting.reason) == (False, None, Reason.NODE_LOST)


def test_a_deleted_pod_is_over_even_if_its_last_event_says_running():
    pod = seen.pod(pod_manifest({"phase": "Running", "containerStatuses": container(running={})}), gone=True)
    assert (pod.gone, pod.running, pod.exit_code) == (True, False, None)
    assert pod.ended is not None


def test_a_pod_without_controller_is_none_of_ours():
    assert seen.pod(pod_manifest({}, ownerReferences=[{**OWNER, "controller": False}])) is None


@pytest.mark.parametrize(
    ("status", "facts"),
    [
        ({"active": 1}, {"complete": False, "failed": False, "halted": False}),
        ({"conditions": [{"type": "Complete", "status": "True"}]}, {"complete": True}),
        ({"conditions": [{"type": "SuccessCriteriaMet", "status": "True"}]}, {"complete": False}),
        (
            {"conditions": [{"type": "Failed", "status": "True", "message": "why"}]},
            {"failed": True, "failed_message": "why"},
        ),
        ({"conditions": [{"type": "Suspended", "status": "True"}]}, {"halted": True}),
        ({"conditions": [{"type": "Suspended", "status": "True"}], "terminating": 1}, {"halted": False}),
        ({"conditions": [{"type": "Suspended", "status": "False"}]}, {"halted": False}),
    ],
)
def test_a_job_in_facts(status, facts):
    manifest = {"metadata": {"name": "j", "uid": "u", "ownerReferences": [OWNER]}, "spec": {}, "status": status}
    child = seen.child_job(manifest)
    assert {name: getattr(child, name) for name in facts} == facts
    assert child.owner.uid == "uid-of-job"
