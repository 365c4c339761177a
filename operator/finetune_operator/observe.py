"""Look at the cluster for one job: live reads, because a decision must never rest on a cache that may be behind.

The watch only says when to look. The one thing that must come from it is a pod that is already deleted: its last
event holds its exit code and its last word.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict

from pydantic import ValidationError

from finetune_api import names
from finetune_api.job import FineTuneJob, job_from
from finetune_api.runtime import FineTuneRuntime, RuntimeSpec, runtime_from
from finetune_api.status import JobStatus, Resolved
from finetune_api.trainer import Stage
from finetune_operator.client import (
    CHILDREN,
    CLAIMS,
    CONFIG_MAPS,
    FINETUNE_JOBS,
    JOBS,
    PODS,
    RUNTIMES,
    SERVICE_ACCOUNTS,
    WORKLOADS,
    Cluster,
    Manifest,
    NotFound,
    Resource,
)
from finetune_operator.plan import seen
from finetune_operator.plan.admit import runtime_of
from finetune_operator.plan.attempts import of_stage
from finetune_operator.plan.claims import claim_template
from finetune_operator.plan.invalid import sentences, shell
from finetune_operator.plan.look import stage_of
from finetune_operator.plan.network import beside
from finetune_operator.plan.objects import child_name
from finetune_operator.plan.references import Permitted, permit
from finetune_operator.plan.state import Beside, Observed, Pod
from finetune_operator.plan.weights import parent_name
from finetune_operator.settings import Settings
from finetune_operator.shared import Shared

REMEMBERED = 1024
WATCH_LAG_SECONDS = 1.0
"""How far the watch may be behind a list when a pod has just gone."""


class Departed:
    """Deleted pods as their last events told of them; the oldest are forgotten.

    Only the facts are kept: a manifest weighs fifteen times as much, 45 MB when all that may be remembered are.
    """

    def __init__(self) -> None:
        self._pods: OrderedDict[str, tuple[str, str, Pod]] = OrderedDict()

    def remember(self, manifest: Manifest) -> None:
        """Keep the pod of a DELETED event."""
        pod = seen.pod(manifest, gone=True)
        if pod is None:
            return
        labels = manifest["metadata"].get("labels", {})
        self._pods[pod.uid] = (labels.get(names.JOB_UID_LABEL, ""), labels.get(names.STAGE_LABEL, ""), pod)
        while len(self._pods) > REMEMBERED:
            self._pods.popitem(last=False)

    def of(self, job_uid: str, stage: str) -> list[Pod]:
        """The deleted pods of a job's stage."""
        return [pod for owner, word, pod in self._pods.values() if (owner, word) == (job_uid, stage)]


async def observe(
    job: FineTuneJob,
    cluster: Cluster,
    departed: Departed,
    settings: Settings,
    shared: Shared,
    told: float | None = None,
) -> Observed:
    """What `decide` needs to know about `job`, but for reports: references before it starts, children after.

    Args:
        told: when something was last heard of the job, on the clock of `shared`; None = now.
    """
    status = job.status or JobStatus()
    if status.is_final or job.metadata.deletion_timestamp is not None:
        return Observed()
    if status.start_time is None:
        return Observed() if job.spec.cancel else await _references(job, cluster, shared, told)
    return await _children(job, status, cluster, departed, settings)


async def _references(job: FineTuneJob, cluster: Cluster, shared: Shared, told: float | None) -> Observed:
    """Runtimes and parent; then, if they permit the job, whether what it names is there.

    Jobs that start at the same time name the same few objects: each is read once for all who have waited meanwhile.
    """

    async def runtimes_of_now() -> tuple[tuple[FineTuneRuntime, ...], dict[str, str]]:
        return _runtimes(await cluster.list(RUNTIMES))

    async def find(resource: Resource, name: str) -> Manifest | None:
        return await shared.read((resource, namespace, name), lambda: _find(cluster, resource, namespace, name), told)

    runtimes, broken = await shared.read(RUNTIMES, runtimes_of_now, told)
    observed = Observed(runtimes=runtimes, broken_runtimes=broken, parent=await _parent(job, cluster))
    permitted = permit(job, observed)
    if not isinstance(permitted, Permitted):
        return observed
    namespace = job.metadata.namespace or ""
    account = permitted.runtime.spec.service_account_name
    claims = {use.parts.root for use in permitted.roots("pvc")}
    config_maps = {use.parts.root for use in permitted.roots("configmap")}
    found_claims = {name: found for name in sorted(claims) if (found := await find(CLAIMS, name)) is not None}
    found_maps = {name: await find(CONFIG_MAPS, name) for name in sorted(config_maps)}
    return Observed(
        runtimes=runtimes,
        broken_runtimes=broken,
        parent=observed.parent,
        claims=frozenset(found_claims),
        access_modes={name: _modes(claim) for name, claim in found_claims.items()},
        config_maps={name: _keys(found) for name, found in found_maps.items() if found is not None},
        service_accounts=frozenset([account] if await find(SERVICE_ACCOUNTS, account) else []),
    )


async def _children(
    job: FineTuneJob, status: JobStatus, cluster: Cluster, departed: Departed, settings: Settings
) -> Observed:
    """The stage's Job, its pods, and what stands beside it."""
    stage, namespace, uid = stage_of(status), job.metadata.namespace or "", job.metadata.uid or ""
    manifest = await _find(cluster, JOBS, namespace, child_name(job, stage))
    word = stage.value.lower()
    labels = f"{names.JOB_UID_LABEL}={uid},{names.STAGE_LABEL}={word}"
    there = await cluster.list(PODS, namespace, labels=labels)
    running = {a.pod for a in status.attempts if a.end_time is None and of_stage(a, job, stage)}
    gone = await _gone(running, there, departed, uid, word)
    parsed = (seen.pod(pod) for pod in there)
    pods = sorted((*(pod for pod in parsed if pod is not None), *gone), key=_age)
    workloads = await _workloads(manifest, cluster) if settings.kueue else []
    children = {stage: seen.child_job(manifest, workloads)} if manifest is not None else {}
    runtime = runtime_of(status.resolved or Resolved())
    there_too = await _beside(job, stage, runtime, cluster, settings)
    claims = await _output_claim(job, runtime, cluster, settings) if not children and stage is Stage.PREPARE else ()
    return Observed(children=children, pods={stage: tuple(pods)}, beside=there_too, claims=frozenset(claims))


async def _beside(
    job: FineTuneJob, stage: Stage, runtime: RuntimeSpec, cluster: Cluster, settings: Settings
) -> tuple[Beside, ...]:
    """What has the names of the Service and the NetworkPolicy that the stage needs."""
    found = []
    for wanted in beside(job, stage, runtime, settings):
        kind, metadata = wanted["kind"], wanted["metadata"]
        manifest = await _find(cluster, CHILDREN[kind], metadata["namespace"], metadata["name"])
        if manifest is not None:
            found.append(seen.beside(kind, manifest))
    return tuple(found)


async def _output_claim(
    job: FineTuneJob, runtime: RuntimeSpec, cluster: Cluster, settings: Settings
) -> tuple[str, ...]:
    """The name of the claim that the runtime's template would make, if it is there."""
    made = claim_template(job, runtime, settings)
    if made is None:
        return ()
    name = made["metadata"]["name"]
    return (name,) if await _find(cluster, CLAIMS, made["metadata"]["namespace"], name) else ()


async def _workloads(job: Manifest | None, cluster: Cluster) -> list[Manifest]:
    """Kueue's objects for a batch/v1 Job in a queue; none where Kueue is not installed."""
    metadata = job["metadata"] if job is not None else {}
    if not metadata.get("labels", {}).get(names.QUEUE_LABEL):
        return []
    try:
        labels = f"{names.QUEUED_JOB_LABEL}={metadata['uid']}"
        return await cluster.list(WORKLOADS, metadata["namespace"], labels=labels)
    except NotFound:
        return []


async def _gone(running: set[str], pods: list[Manifest], departed: Departed, uid: str, stage: str) -> list[Pod]:
    """Deleted pods of the stage. One that ran and is in no list may have its last event still on the way.

    Args:
        running: names of the pods that ran at the last look.
    """
    there = {pod["metadata"]["uid"] for pod in pods}
    gone = [pod for pod in departed.of(uid, stage) if pod.uid not in there]
    if running - {*(pod["metadata"]["name"] for pod in pods), *(pod.name for pod in gone)}:
        await asyncio.sleep(WATCH_LAG_SECONDS)
        gone = [pod for pod in departed.of(uid, stage) if pod.uid not in there]
    return gone


def _age(pod: Pod) -> tuple[str, str]:
    return (pod.created, pod.name)


async def _parent(job: FineTuneJob, cluster: Cluster) -> FineTuneJob | None:
    name = parent_name(job)
    manifest = await _find(cluster, FINETUNE_JOBS, job.metadata.namespace or "", name) if name else None
    if manifest is None:
        return None
    try:
        return job_from(manifest)
    except ValidationError:
        return shell(manifest)


def _runtimes(manifests: list[Manifest]) -> tuple[tuple[FineTuneRuntime, ...], dict[str, str]]:
    """Runtimes that can be read, and the sentences about those that cannot."""
    good, broken = [], {}
    for manifest in manifests:
        # Items of a list bear no apiVersion and kind.
        whole = {**manifest, "apiVersion": names.API_VERSION, "kind": names.RUNTIME_KIND}
        try:
            good.append(runtime_from(whole))
        except ValidationError as error:
            broken[manifest["metadata"]["name"]] = sentences(error)
    return tuple(good), broken


async def _find(cluster: Cluster, resource: Resource, namespace: str, name: str) -> Manifest | None:
    try:
        return await cluster.get(resource, namespace, name)
    except NotFound:
        return None


def _modes(claim: Manifest) -> tuple[str, ...]:
    return tuple(claim.get("spec", {}).get("accessModes", ()))


def _keys(config_map: Manifest | None) -> frozenset[str]:
    found = config_map or {}
    return frozenset([*found.get("data", {}), *found.get("binaryData", {})])
