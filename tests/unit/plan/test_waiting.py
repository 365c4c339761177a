"""Why a pod does not run: what scheduler, kubelet and node controller write, and what is made of it."""

from __future__ import annotations

from typing import Any

import pytest

from finetune_api.status import Reason
from finetune_operator.plan.waiting import MAX_QUOTE, node_lost, waiting_of

NO_NODE = (
    "0/3 nodes are available: 1 node(s) had untolerated taint {node-role.kubernetes.io/control-plane: }, 2 Insufficient"
    " nvidia.com/gpu. preemption: 0/3 nodes are available: 3 Preemption is not helpful for scheduling."
)
NO_VOLUME = "0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims."
NO_PULL = 'Back-off pulling image "registry/trainer:9": ErrImagePull: failed to resolve reference: not found'


def pod(status: dict[str, Any]) -> dict[str, Any]:
    return {"metadata": {"name": "p", "namespace": "team"}, "spec": {"nodeName": "gpu-7"}, "status": status}


def unscheduled(message: str, reason: str = "Unschedulable") -> dict[str, Any]:
    condition = {"type": "PodScheduled", "status": "False", "reason": reason, "message": message}
    return {"phase": "Pending", "conditions": [condition]}


def waits(reason: str, message: str = "") -> dict[str, Any]:
    state = {"waiting": {"reason": reason, **({"message": message} if message else {})}}
    return {"phase": "Pending", "containerStatuses": [{"name": "trainer", "state": state}]}


@pytest.mark.parametrize(
    ("status", "reason", "words", "remedy"),
    [
        (unscheduled(NO_NODE), Reason.UNSCHEDULABLE, "pod p: Unschedulable: 0/3 nodes are", "lower spec.resources"),
        (unscheduled(NO_VOLUME), Reason.UNSCHEDULABLE, "pod p: Unschedulable: 0/1", "persistentvolumeclaim tells why"),
        (unscheduled("gated", "SchedulingGated"), Reason.INITIALIZING, "pod p: SchedulingGated", "must lift them"),
        (waits("ImagePullBackOff", NO_PULL), Reason.IMAGE_PULL_FAILED, "registry/trainer:9", "reach the registry"),
        (waits("ErrImagePull", "not found"), Reason.IMAGE_PULL_FAILED, "pod p: ErrImagePull: not found", "registry"),
        (waits("InvalidImageName", "bad"), Reason.IMAGE_PULL_FAILED, "InvalidImageName", "mend spec.image"),
        (
            waits("ErrImageNeverPull", "no"),
            Reason.IMAGE_PULL_FAILED,
            "ErrImageNeverPull",
            "load the image on the nodes",
        ),
        (
            waits("CreateContainerConfigError", 'secret "finetune-hf" not found'),
            Reason.SECRET_NOT_FOUND,
            "there is no Secret finetune-hf in namespace team",
            "create it, and the pod starts by itself",
        ),
        (
            waits("CreateContainerConfigError", "couldn't find key token in Secret team/finetune-hf"),
            Reason.SECRET_NOT_FOUND,
            "Secret finetune-hf in namespace team has no key token",
            "add it",
        ),
        (
            waits("CreateContainerConfigError", 'configmap "env" not found'),
            Reason.CONTAINER_CONFIG_ERROR,
            'CreateContainerConfigError: configmap "env" not found',
            "podTemplate",
        ),
        (waits("CreateContainerError", "no such path"), Reason.CONTAINER_CONFIG_ERROR, "no such path", "podTemplate"),
        (waits("PodInitializing"), Reason.INITIALIZING, "pod p: PodInitializing", "kubectl describe pod p"),
        ({}, Reason.INITIALIZING, "pod p: ContainerCreating", "kubectl describe pod p"),
    ],
)
def test_each_cause_has_its_reason_and_says_what_to_do(status, reason, words, remedy):
    told = waiting_of(pod(status))
    assert told.reason is reason
    assert words in told.message
    assert remedy in told.message.rpartition(words)[2]


@pytest.mark.parametrize(
    "message",
    [
        'secret "finetune-hf" not found: token is hf_CANARY',
        'secret "finetune-hf\nhf_CANARY" not found',
        "couldn't find key to ken in Secret team/finetune-hf",
    ],
)
def test_only_the_kubelets_own_sentence_about_a_secret_is_taken_for_one(message):
    assert waiting_of(pod(waits("CreateContainerConfigError", message))).reason is Reason.CONTAINER_CONFIG_ERROR


def test_a_container_that_the_cluster_has_added_may_be_the_one_that_waits():
    status = waits("PodInitializing")
    mesh = {"name": "mesh-init", "state": {"waiting": {"reason": "ImagePullBackOff", "message": "mesh:1"}}}
    told = waiting_of(pod({**status, "initContainerStatuses": [mesh]}))
    assert (told.reason, "mesh:1" in told.message) == (Reason.IMAGE_PULL_FAILED, True)


def test_a_quote_is_bounded():
    told = waiting_of(pod(waits("ErrImagePull", "x" * 100_000)))
    assert len(told.message) < MAX_QUOTE + 200


def ready(ready: str, containers: str, **more: str) -> dict[str, Any]:
    conditions = [{"type": "Ready", "status": ready, **more}, {"type": "ContainersReady", "status": containers}]
    return {"phase": "Running", "conditions": conditions}


@pytest.mark.parametrize(
    ("status", "lost"),
    [
        (ready("True", "True"), False),
        (ready("False", "False", reason="ContainersNotReady"), False),
        (ready("False", "True", reason="ReadinessGatesNotReady"), False),
        (ready("False", "True"), True),
        (ready("Unknown", "True"), True),
        ({"phase": "Unknown"}, True),
        ({"phase": "Running", "reason": "NodeLost"}, True),
        ({"phase": "Pending"}, False),
    ],
)
def test_a_node_is_lost_when_ready_is_taken_away_from_ready_containers(status, lost):
    told = node_lost(pod(status))
    assert (told is not None) is lost
    if told:
        assert "node gpu-7 does not answer" in told.message
        assert "kubectl delete node gpu-7" in told.message
