"""Why a pod does not run: the words of scheduler, kubelet and node controller, and what to do about them.

Their sentences are quoted, because they alone know the facts; only of a missing Secret no more than its name and key.
"""

from __future__ import annotations

import re
from typing import Any

from finetune_api.status import Reason
from finetune_operator.plan.state import Manifest, Waiting

IMAGE_REASONS = frozenset(
    {
        "ErrImagePull",
        "ImagePullBackOff",
        "ImageInspectError",
        "InvalidImageName",
        "ErrImageNeverPull",
        "RegistryUnavailable",
        "SignatureValidationFailed",
    }
)
CONFIG_REASONS = frozenset(
    {
        "CreateContainerConfigError",
        "CreateContainerError",
        "RunContainerError",
        "PreCreateHookError",
        "PostStartHookError",
    }
)
MAX_QUOTE = 1024
NO_SECRET = re.compile(r'secret "(?P<name>[a-z0-9][-a-z0-9.]{0,252})" not found')
NO_KEY = re.compile(
    r"couldn't find key (?P<key>[-._a-zA-Z0-9]{1,253}) in Secret [-a-z0-9]{1,63}/(?P<name>[a-z0-9][-a-z0-9.]{0,252})"
)
IMAGE_REMEDY = {
    "InvalidImageName": "mend spec.image of the FineTuneRuntime",
    "ErrImageNeverPull": "load the image on the nodes, or let the FineTuneRuntime name one that can be pulled",
}
ANY_IMAGE_REMEDY = (
    "check spec.image of the FineTuneRuntime, and that its nodes reach the registry and have the credentials for it"
)
NODE_REMEDY = "lower spec.resources, or have nodes that fit the FineTuneRuntime's podTemplate added or freed"
CLAIM_REMEDY = "kubectl describe persistentvolumeclaim tells why a claim is not bound"
CONFIG_REMEDY = "mend what the FineTuneRuntime's podTemplate names"
QUIET_REMEDY = "kubectl describe pod {name} tells more if this lasts"


def waiting_of(manifest: Manifest) -> Waiting:
    """Why the trainer of this pod, which has not ended, does not run."""
    name, status = manifest["metadata"]["name"], manifest.get("status", {})
    for condition in status.get("conditions", ()):
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return _unscheduled(name, condition)
    word, message = _telling(status)
    if word in IMAGE_REASONS:
        return _say(Reason.IMAGE_PULL_FAILED, name, word, message, IMAGE_REMEDY.get(word, ANY_IMAGE_REMEDY))
    if word in CONFIG_REASONS:
        return _no_secret(manifest, message) or _say(Reason.CONTAINER_CONFIG_ERROR, name, word, message, CONFIG_REMEDY)
    return _say(Reason.INITIALIZING, name, word, message, QUIET_REMEDY.format(name=name))


def node_lost(manifest: Manifest) -> Waiting | None:
    """What to say of a pod whose node does not answer; None while the kubelet is heard.

    The node controller then takes Ready away from a pod whose containers are ready as far as the kubelet ever said.
    A readiness gate, which a cluster may add to every pod, looks alike but for its reason.
    """
    status = manifest.get("status", {})
    held = {c["type"]: c for c in status.get("conditions", ())}
    ready, containers = held.get("Ready", {}), held.get("ContainersReady", {})
    forsaken = ready.get("status") in ("False", "Unknown") and containers.get("status") == "True"
    silent = (forsaken and ready.get("reason") != "ReadinessGatesNotReady") or status.get("phase") == "Unknown"
    if not silent and status.get("reason") != "NodeLost":
        return None
    node = manifest.get("spec", {}).get("nodeName", "")
    message = (
        f"pod {manifest['metadata']['name']}: its node {node} does not answer: nothing goes on until it does, or"
        f" until somebody who knows that it is gone for good deletes it (kubectl delete node {node})"
    )
    return Waiting(Reason.NODE_LOST, message)


def _unscheduled(name: str, condition: dict[str, Any]) -> Waiting:
    word, message = condition.get("reason", "Pending"), condition.get("message", "")
    if word == "SchedulingGated":
        return _say(Reason.INITIALIZING, name, word, message, "whoever has set its scheduling gates must lift them")
    remedy = CLAIM_REMEDY if "persistentvolumeclaim" in message.lower() else NODE_REMEDY
    return _say(Reason.UNSCHEDULABLE, name, word, message, remedy)


def _telling(status: dict[str, Any]) -> tuple[str, str]:
    """(reason, message) of the first container that cannot start, be it one that the cluster has added; else any."""
    every = [*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ())]
    waits = [w for c in every if (w := c.get("state", {}).get("waiting"))]
    known = IMAGE_REASONS | CONFIG_REASONS
    first = next((w for w in waits if w.get("reason") in known), waits[-1] if waits else {})
    return first.get("reason", "ContainerCreating"), first.get("message", "")


def _no_secret(manifest: Manifest, message: str) -> Waiting | None:
    metadata = manifest["metadata"]
    if found := NO_SECRET.fullmatch(message):
        lacks = f"there is no Secret {found['name']} in namespace {metadata['namespace']}: create it"
    elif found := NO_KEY.fullmatch(message):
        lacks = f"Secret {found['name']} in namespace {metadata['namespace']} has no key {found['key']}: add it"
    else:
        return None
    return Waiting(Reason.SECRET_NOT_FOUND, f"pod {metadata['name']}: {lacks}, and the pod starts by itself")


def _say(reason: Reason, name: str, word: str, message: str, remedy: str) -> Waiting:
    quote = f": {message[:MAX_QUOTE].rstrip(' .')}" if message else ""
    return Waiting(reason, f"pod {name}: {word}{quote}; {remedy}")
