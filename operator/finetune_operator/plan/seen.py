"""From a Job's or a pod's JSON to the few facts that decide: every reading of a foreign object stands here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from finetune_api import names
from finetune_operator.plan.pod import CONTAINER
from finetune_operator.plan.state import Beside, ChildJob, Manifest, Owner, Pod, Workload
from finetune_operator.plan.waiting import MAX_QUOTE, node_lost, waiting_of

NO_CAUSE = frozenset({"Error", "Completed", None})
NEVER_STARTED = frozenset({"StartError", "ContainerCannotRun"})
"""What runtimes call the end of a container whose program could not be started: its message is theirs."""


def owner_of(manifest: Manifest) -> Owner | None:
    """The controller of an object, from its ownerReferences."""
    for reference in manifest["metadata"].get("ownerReferences", ()):
        if reference.get("controller"):
            return Owner(kind=reference["kind"], name=reference["name"], uid=reference["uid"])
    return None


def child_job(manifest: Manifest, workloads: Sequence[Manifest] = ()) -> ChildJob:
    """The facts of a batch/v1 Job.

    Args:
        workloads: among them Kueue's object for it, if there is one.
    """
    metadata, spec, status = manifest["metadata"], manifest.get("spec", {}), manifest.get("status", {})
    held = {c["type"]: c for c in status.get("conditions", ()) if c.get("status") == "True"}
    labels = metadata.get("labels", {})
    pods = status.get("active", 0) + (status.get("terminating") or 0)
    return ChildJob(
        name=metadata["name"],
        uid=metadata["uid"],
        owner=owner_of(manifest),
        being_deleted=metadata.get("deletionTimestamp") is not None,
        started=status.get("startTime"),
        suspended=spec.get("suspend", False),
        suspended_since=held.get("Suspended", {}).get("lastTransitionTime"),
        queue=labels.get(names.QUEUE_LABEL) or None,
        parked=labels.get(names.PARKED_LABEL) or None,
        workload=next((_workload(w) for w in workloads if _is_for(w, metadata["uid"])), None),
        mark=metadata.get("annotations", {}).get(names.STOP_ANNOTATION),
        halted="Suspended" in held and pods == 0,
        complete="Complete" in held,
        failed="Failed" in held,
        failed_message=held.get("Failed", {}).get("message", "")[:MAX_QUOTE],
    )


def _is_for(workload: Manifest, job_uid: str) -> bool:
    owner = owner_of(workload)
    return owner is not None and owner.kind == "Job" and owner.uid == job_uid


def _workload(manifest: Manifest) -> Workload:
    metadata, spec, status = manifest["metadata"], manifest.get("spec", {}), manifest.get("status", {})
    conditions = {c["type"]: c for c in status.get("conditions", ())}
    held = {kind for kind, c in conditions.items() if c["status"] == "True"}
    return Workload(
        name=metadata["name"],
        uid=metadata["uid"],
        active=spec.get("active", True),
        reserved="QuotaReserved" in held and "Finished" not in held,
        said=_said(status, conditions, held)[:MAX_QUOTE],
    )


def _said(status: dict[str, Any], conditions: dict[str, Any], held: set[str]) -> str:
    """Why a Workload does not run, from the condition that stands in its way."""
    if "Finished" in held:
        return str(conditions["Finished"].get("message") or "its Workload is finished")
    if "Admitted" in held:
        return "admitted; Kueue starts it"
    if "QuotaReserved" in held:
        checks = [c for c in status.get("admissionChecks", ()) if c.get("state") != "Ready"]
        told = "; ".join(f"{c['name']} {c.get('state')} {c.get('message') or ''}".rstrip() for c in checks)
        return f"quota is reserved; waits for admission checks{': ' if told else ''}{told}"
    waits = conditions.get("QuotaReserved") or conditions.get("Evicted") or {}
    return str(waits.get("message") or "waits for Kueue to look at it")


def beside(kind: str, manifest: Manifest) -> Beside:
    """The facts of a Service or NetworkPolicy."""
    metadata = manifest["metadata"]
    gone = metadata.get("deletionTimestamp") is not None
    return Beside(kind, metadata["name"], owner_of(manifest), being_deleted=gone)


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
    lost = node_lost(manifest) if not (end or over or gone) else None
    never_started = end.get("reason") in NEVER_STARTED
    runs = "running" in state and status.get("phase") == "Running" and lost is None
    return Pod(
        name=metadata["name"],
        uid=metadata["uid"],
        job_uid=owner.uid,
        created=metadata["creationTimestamp"],
        running=runs and not going,
        leaving=runs and going and not gone,
        ip=status.get("podIP"),
        host_network=spec.get("hostNetwork", False),
        # For a container that never started the kubelet writes 1970.
        started=None if never_started else (state.get("running") or end).get("startedAt"),
        ended=_ended(end, metadata, status) if end or over or gone else None,
        exit_code=end.get("exitCode"),
        disrupted=_disrupted(status),
        cause=_cause(end, status),
        node_said=str((end if never_started else status).get("message") or "")[:MAX_QUOTE],
        last_word="" if never_started else end.get("message", ""),
        waiting=None if end or over else lost or (None if "running" in state else waiting_of(manifest)),
        gone=gone,
        index=_index(metadata),
    )


def _index(metadata: dict[str, Any]) -> int | None:
    given = str((metadata.get("annotations") or {}).get(names.INDEX_ANNOTATION, ""))
    return int(given) if given.isdecimal() else None


def _container(status: dict[str, Any]) -> dict[str, Any]:
    return next((c for c in status.get("containerStatuses", ()) if c["name"] == CONTAINER), {})


def _ended(end: dict[str, Any], metadata: dict[str, Any], status: dict[str, Any]) -> str:
    """When the container ended; a pod that never ran one ended when it was deleted, or when last something changed."""
    changed = [str(c["lastTransitionTime"]) for c in status.get("conditions", ()) if c.get("lastTransitionTime")]
    known = end.get("finishedAt") or metadata.get("deletionTimestamp")
    return str(known or max(changed, default=metadata["creationTimestamp"]))


def _disrupted(status: dict[str, Any]) -> str | None:
    for condition in status.get("conditions", ()):
        if condition["type"] == "DisruptionTarget" and condition["status"] == "True":
            return str(condition.get("reason") or "DisruptionTarget")
    return None


def _cause(end: dict[str, Any], status: dict[str, Any]) -> str | None:
    cause = end.get("reason")
    return str(cause) if cause not in NO_CAUSE else status.get("reason")
