"""Do what a plan says: children by POST, each once; a stop by spec.suspend; the status in one write; events last."""

from __future__ import annotations

import logging
from datetime import datetime

from finetune_api import names
from finetune_api.job import ObjectMeta
from finetune_api.status import JobStatus
from finetune_operator.client import (
    CHILDREN,
    EVENTS,
    FINETUNE_JOBS,
    AlreadyExists,
    Cluster,
    ClusterError,
    Conflict,
    Manifest,
    NotFound,
    Refused,
)
from finetune_operator.plan.state import ChildJob, Event, Plan, timestamp

LOG = logging.getLogger(__name__)
MAX_EVENT_MESSAGE = 1024


async def apply_objects(plan: Plan, namespace: str, cluster: Cluster) -> str | None:
    """Make and stop children, in the plan's order. Returns what the API server says if it will not take one of them:
    `<kind> <name>: <sentence>`; those after it are not made.

    A child that exists is left as it is, and those after it wait: the next look sees whose it is.
    """
    for manifest in plan.create:
        kind, name = manifest["kind"], manifest["metadata"]["name"]
        try:
            await cluster.create(CHILDREN[kind], manifest)
        except AlreadyExists:
            LOG.info("%s %s/%s exists already", kind, namespace, name)
            break
        except Refused as refusal:
            return f"{kind} {name}: {refusal}"
    for child in (*plan.suspend, *plan.resume):
        try:
            await _hold(child, namespace, cluster)
        except (NotFound, Conflict):
            LOG.info("Job %s/%s is not there any more, or its Workload is not", namespace, child.name)
        except Refused as refusal:
            return f"{child.kind} {child.name}: {refusal}"
    return None


async def _hold(child: ChildJob, namespace: str, cluster: Cluster) -> None:
    """Make a child, and Kueue's object for it, as they shall be. The mark is the first that comes and the last that
    goes: should the operator die between the two calls, the next look does both again."""
    workload = child.workload
    if workload is not None and child.mark is None:
        await cluster.activate(namespace, workload.name, workload.uid, active=workload.active)
    in_queue = child.queue is not None or child.parked is not None
    await cluster.hold(
        namespace,
        child.name,
        child.uid,
        suspend=child.suspended if child.queue is None else None,
        mark=child.mark,
        labels={names.QUEUE_LABEL: child.queue, names.PARKED_LABEL: child.parked}
        if in_queue and workload is None
        else None,
    )
    if workload is not None and child.mark is not None:
        await cluster.activate(namespace, workload.name, workload.uid, active=workload.active)


async def write_status(metadata: ObjectMeta, status: JobStatus, cluster: Cluster) -> Manifest:
    """Write the whole status, if the object is still the one that was read; returns the object as it is then.

    Raises:
        Conflict: it has changed; nothing is written.
    """
    manifest = {
        "apiVersion": names.API_VERSION,
        "kind": names.JOB_KIND,
        "metadata": {
            "name": metadata.name,
            "namespace": metadata.namespace,
            "uid": metadata.uid,
            "resourceVersion": metadata.resource_version,
        },
        "status": status.to_json(),
    }
    return await cluster.apply_status(FINETUNE_JOBS, manifest)


async def delete_job(metadata: ObjectMeta, cluster: Cluster) -> None:
    """Delete a job whose time after the end is over, if it is still the one that was read; children follow it.

    Raises:
        Conflict: it has changed; nothing is deleted.
    """
    namespace, name = metadata.namespace or "", metadata.name
    try:
        await cluster.delete(FINETUNE_JOBS, namespace, name, metadata.uid or "", metadata.resource_version or "")
    except NotFound:
        return
    LOG.info("%s/%s is deleted: its ttlSecondsAfterFinished is over", namespace, name)


async def post_event(metadata: ObjectMeta, event: Event, now: datetime, cluster: Cluster) -> None:
    """Tell what happened. An event that cannot be written is logged: the status holds the truth."""
    try:
        await cluster.create(EVENTS, _event(metadata, event, timestamp(now)))
    except ClusterError as error:
        LOG.warning("event %s of %s/%s: %s", event.reason, metadata.namespace, metadata.name, error)


def _event(metadata: ObjectMeta, event: Event, moment: str) -> dict[str, object]:
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"generateName": f"{metadata.name}.", "namespace": metadata.namespace},
        "involvedObject": {
            "apiVersion": names.API_VERSION,
            "kind": names.JOB_KIND,
            "namespace": metadata.namespace,
            "name": metadata.name,
            "uid": metadata.uid,
        },
        "type": event.type,
        "reason": event.reason,
        "message": event.message[:MAX_EVENT_MESSAGE],
        "firstTimestamp": moment,
        "lastTimestamp": moment,
        "count": 1,
        "source": {"component": names.FIELD_MANAGER},
        "reportingComponent": names.FIELD_MANAGER,
    }
