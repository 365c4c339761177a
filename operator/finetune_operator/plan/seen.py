"""From a Job's or a pod's JSON to the few facts that decide: every reading of a foreign object stands here."""

from __future__ import annotations

from typing import Any

from finetune_api import names
from finetune_api.status import Reason
from finetune_operator.plan.pod import CONTAINER
from finetune_operator.plan.state import ChildJob, Manifest, Owner, Pod, Waiting

IMAGE_REASONS = frozenset({"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"})
CONFIG_REASONS = frozenset({"CreateContainerConfigError", "CreateContainerError", "RunContainerError"})
NO_CAUSE = frozenset({"Error", "Completed", "ContainerCannotRun", None})
MAX_QUOTE = 1024


def owner_of(manifest: Manifest) -> Owner | None:
    """The controller of an object, from its ownerReferences."""
    for reference in manifest["metadata"].get("ownerReferences", ()):
        if reference.get("controller"):
            return Owner(kind=reference["kind"], name=reference["name"], uid=reference["uid"])
    return None


def child_job(manifest: Manifest) -> ChildJob:
    """The facts of a batch/v1 Job."""
    metadata, spec, status = manifest["metadata"], manifest.get("spec", {}), manifest.get("status", {})
    held = {c["type"]: c for c in status.get("conditions", ()) if c.get("status") == "True"}
    pods = status.get("active", 0) + (status.get("terminating") or 0)
    return ChildJob(
        name=metadata["name"],
        uid=metadata["uid"],
        owner=owner_of(manifest),
        being_deleted=metadata.get("deletionTimestamp") is not None,
        suspended=spec.get("suspend", False),
        mark=metadata.get("annotations", {}).get(names.STOP_ANNOTATION),
        halted="Suspended" in held and pods == 0,
        complete="Complete" in held,
        failed="Failed" in held,
        failed_message=held.get("Failed", {}).get("message", "")[:MAX_QUOTE],
    )


def pod(manifest: Manifest, *, gone: bool = False) -> Pod | None:
    """The facts of a pod; None for one that no controller owns."""
    metadata, spec, status = manifest["metadata"], manifest.get("spec", {}), manifest.get("status", {})
    owner = owner_of(manifest)
    if owner is None:
        return None
    container = _container(status)
    state = container.get("state", {})
    end = state.get("terminated") or {}
    over = status.get("phase") in ("Succeeded", "Failed")
    going = gone or metadata.get("deletionTimestamp") is not None
    return Pod(
        name=metadata["name"],
        uid=metadata["uid"],
        job_uid=owner.uid,
        created=metadata["creationTimestamp"],
        running="running" in state and status.get("phase") == "Running" and not going,
        ip=status.get("podIP"),
        host_network=spec.get("hostNetwork", False),
        started=(state.get("running") or end).get("startedAt"),
        ended=_ended(end, metadata) if end or over or gone else None,
        exit_code=end.get("exitCode"),
        disrupted=_disrupted(status),
        cause=_cause(end, status),
        last_word=end.get("message", ""),
        waiting=None if end or over or "running" in state else _waiting(metadata["name"], status, container),
        gone=gone,
    )


def _container(status: dict[str, Any]) -> dict[str, Any]:
    return next((c for c in status.get("containerStatuses", ()) if c["name"] == CONTAINER), {})


def _ended(end: dict[str, Any], metadata: dict[str, Any]) -> str:
    """When the container ended; a pod that never ran one ended when it was deleted, or at once."""
    return str(end.get("finishedAt") or metadata.get("deletionTimestamp") or metadata["creationTimestamp"])


def _disrupted(status: dict[str, Any]) -> str | None:
    for condition in status.get("conditions", ()):
        if condition["type"] == "DisruptionTarget" and condition["status"] == "True":
            return str(condition.get("reason") or "DisruptionTarget")
    return None


def _cause(end: dict[str, Any], status: dict[str, Any]) -> str | None:
    cause = end.get("reason")
    return str(cause) if cause not in NO_CAUSE else status.get("reason")


def _waiting(name: str, status: dict[str, Any], container: dict[str, Any]) -> Waiting:
    for condition in status.get("conditions", ()):
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            word = condition.get("reason", "Pending")
            return Waiting(Reason.UNSCHEDULABLE, _quoted(name, word, condition.get("message", "")))
    waiting = container.get("state", {}).get("waiting", {})
    word = waiting.get("reason", "ContainerCreating")
    message = _quoted(name, word, waiting.get("message", ""))
    if word in IMAGE_REASONS:
        return Waiting(Reason.IMAGE_PULL_FAILED, message)
    if word in CONFIG_REASONS:
        return Waiting(Reason.CONTAINER_CONFIG_ERROR, message)
    return Waiting(Reason.INITIALIZING, message)


def _quoted(name: str, word: str, message: str) -> str:
    return f"pod {name}: {word}{': ' if message else ''}{message[:MAX_QUOTE]}"
