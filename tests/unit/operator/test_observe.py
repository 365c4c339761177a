"""What a look asks the cluster for: no more than the job may touch, and the last words of pods that are gone."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from builders import JOB_UID, NOW_TEXT, job_manifest, make_job, runtime_manifest
from finetune_api import names
from finetune_api.job import FineTuneJob
from finetune_api.status import Attempt, Condition, ConditionStatus, JobStatus, Resolved, ResolvedRuntime
from finetune_api.trainer import Stage
from finetune_operator import observe as module
from finetune_operator.client import (
    CLAIMS,
    CONFIG_MAPS,
    FINETUNE_JOBS,
    JOBS,
    PODS,
    RUNTIMES,
    SERVICE_ACCOUNTS,
    WORKLOADS,
    NotFound,
)
from finetune_operator.observe import Departed, observe
from finetune_operator.plan.state import Observed
from finetune_operator.settings import Settings
from finetune_operator.shared import Shared
from simulated import SimulatedCluster, World

LABELS = {names.JOB_UID_LABEL: JOB_UID, names.STAGE_LABEL: "train"}
READY = Condition(
    type="DataReady", status=ConditionStatus.TRUE, reason="DataReady", message="", last_transition_time=NOW_TEXT
)


def named(name: str, **more: Any) -> dict[str, Any]:
    return {"metadata": {"name": name, "namespace": "team", **more.pop("metadata", {})}, **more}


class Asked(SimulatedCluster):
    """Remembers which objects were asked for by name."""

    def __init__(self, world: World) -> None:
        super().__init__(world, lambda: None, lambda: None)
        self.names: list[str] = []

    async def get(self, resource: Any, namespace: str | None, name: str) -> dict[str, Any]:
        self.names.append(f"{resource.plural}/{name}")
        return await super().get(resource, namespace, name)


def seen(world: World, job: FineTuneJob, departed: Departed | None = None) -> tuple[Observed, list[str]]:
    cluster = Asked(world)
    client: Any = cluster
    return asyncio.run(observe(job, client, departed or Departed(), Settings(), Shared(time.monotonic))), cluster.names


def training(*attempts: Attempt) -> FineTuneJob:
    runtime = ResolvedRuntime(name="gpu", generation=1, spec={"image": "trainer:1"})
    resolved = Resolved(runtime=runtime)
    status = JobStatus(start_time=NOW_TEXT, conditions=(READY,), attempts=attempts, resolved=resolved)
    return make_job().model_copy(update={"status": status})


def train_pod(name: str, **status: Any) -> dict[str, Any]:
    owner = {"kind": "Job", "name": "tune-train", "uid": "uid-of-train", "controller": True}
    metadata = {"uid": f"uid-of-{name}", "labels": LABELS, "ownerReferences": [owner], "creationTimestamp": NOW_TEXT}
    return named(name, metadata=metadata, spec={}, status=status)


def test_references_are_looked_for_by_name():
    world = World({})
    world.add(RUNTIMES, runtime_manifest())
    world.add(CLAIMS, named("finetune-models"))
    world.add(CONFIG_MAPS, named("rows", data={"a": "1"}, binaryData={"b": ""}))
    world.add(SERVICE_ACCOUNTS, named("default"))
    observed, asked = seen(world, make_job(trainingFile="configmap://rows/a", validationFile="pvc://missing/v"))
    assert observed.claims == {"finetune-models"}
    assert observed.config_maps == {"rows": frozenset({"a", "b"})}
    assert observed.service_accounts == {"default"}
    assert sorted(asked) == [
        "configmaps/rows",
        "persistentvolumeclaims/finetune-models",
        "persistentvolumeclaims/missing",
        "serviceaccounts/default",
    ]


class WithQueues(SimulatedCluster):
    """Remembers which labels Workloads were looked for with; Kueue may be missing."""

    def __init__(self, world: World, *, installed: bool = True) -> None:
        super().__init__(world, lambda: None, lambda: None)
        self.looked_for: list[str] = []
        self._installed = installed

    async def list(
        self, resource: Any, namespace: str | None = None, *, labels: str = "", metadata_only: bool = False
    ) -> list[dict[str, Any]]:
        if resource is WORKLOADS:
            self.looked_for.append(labels)
            if not self._installed:
                raise NotFound(labels)
        return await super().list(resource, namespace, labels=labels, metadata_only=metadata_only)


@pytest.mark.parametrize(
    ("labels", "kueue", "installed", "asked"),
    [
        ({names.QUEUE_LABEL: "a"}, True, True, True),
        ({names.QUEUE_LABEL: "a"}, True, False, True),
        ({names.QUEUE_LABEL: "a"}, False, True, False),
        ({}, True, True, False),
    ],
    ids=["in a queue", "Kueue is not there", "switched off", "no queue"],
)
def test_kueue_is_asked_for_a_job_in_a_queue_alone(labels, kueue, installed, asked):
    world = World({})
    world.add(JOBS, named("tune-train", metadata={"labels": labels, "uid": "uid-of-train"}))
    owner = {"kind": "Job", "name": "tune-train", "uid": "uid-of-train", "controller": True}
    found = {"labels": {names.QUEUED_JOB_LABEL: "uid-of-train"}, "uid": "w", "ownerReferences": [owner]}
    world.add(WORKLOADS, named("job-tune", metadata=found))
    cluster = WithQueues(world, installed=installed)
    client: Any = cluster
    observed = asyncio.run(observe(training(), client, Departed(), Settings(kueue=kueue), Shared(time.monotonic)))
    workload = observed.children[Stage.TRAIN].workload
    assert cluster.looked_for == ([f"{names.QUEUED_JOB_LABEL}=uid-of-train"] if asked else [])
    assert (workload is not None) is (asked and installed)


def test_nothing_is_asked_for_that_the_runtime_does_not_allow():
    world = World({})
    world.add(RUNTIMES, runtime_manifest(access={"claims": {"read": [], "write": []}}))
    _, asked = seen(world, make_job())
    assert asked == []


def test_runtimes_that_cannot_be_read_are_told_apart():
    world = World({})
    world.add(RUNTIMES, runtime_manifest("good"))
    bad = runtime_manifest("bad")
    del bad["spec"]["image"]
    world.add(RUNTIMES, bad)
    observed, _ = seen(world, make_job(runtime="good"))
    assert [r.metadata.name for r in observed.runtimes] == ["good"]
    assert observed.broken_runtimes == {"bad": "spec.image: Field required"}


def test_a_parent_that_cannot_be_read_is_not_ready_rather_than_an_error():
    world = World({})
    world.add(RUNTIMES, runtime_manifest())
    world.add(FINETUNE_JOBS, job_manifest("first", uid="other", fromCheckpoint="both"))
    observed, _ = seen(world, make_job(model=None, fromCheckpoint="first"))
    assert observed.parent.metadata.name == "first"


def test_a_final_job_is_not_observed():
    done = READY.model_copy(update={"type": "Complete"})
    job = make_job().model_copy(update={"status": JobStatus(start_time=NOW_TEXT, conditions=(done,))})
    assert seen(World({}), job) == (Observed(), [])


def test_only_the_stage_at_work_is_looked_at_oldest_pod_first():
    world = World({})
    owner = [{"kind": "FineTuneJob", "name": "tune", "uid": JOB_UID, "controller": True}]
    world.add(JOBS, named("tune-train", metadata={"uid": "uid-of-train", "ownerReferences": owner}, spec={}))
    late = train_pod("late")
    late["metadata"]["creationTimestamp"] = "2026-02-01T00:00:00Z"
    world.add(PODS, late)
    world.add(PODS, train_pod("early"))
    observed, asked = seen(world, training())
    assert asked == ["jobs/tune-train"]
    assert observed.children[Stage.TRAIN].owner.uid == JOB_UID
    assert [p.name for p in observed.pods[Stage.TRAIN]] == ["early", "late"]


def test_a_deleted_pods_last_event_is_its_last_word():
    departed = Departed()
    end = {"exitCode": 3, "finishedAt": NOW_TEXT, "message": "{}"}
    departed.remember(
        train_pod("gone", phase="Failed", containerStatuses=[{"name": "trainer", "state": {"terminated": end}}])
    )
    observed, _ = seen(World({}), training(Attempt(pod="tune-train-x")), departed)
    (pod,) = observed.pods[Stage.TRAIN]
    assert (pod.gone, pod.exit_code, pod.last_word) == (True, 3, "{}")


def test_a_pod_that_is_still_listed_is_taken_from_the_list():
    world, departed = World({}), Departed()
    world.add(PODS, train_pod("p", phase="Running", containerStatuses=[{"name": "trainer", "state": {"running": {}}}]))
    departed.remember(train_pod("p", phase="Failed"))
    observed, _ = seen(world, training(), departed)
    (pod,) = observed.pods[Stage.TRAIN]
    assert (pod.gone, pod.running) == (False, True)


def test_the_watch_gets_a_moment_to_tell_how_a_pod_ended(monkeypatch):
    monkeypatch.setattr(module, "WATCH_LAG_SECONDS", 0.05)
    world, departed = World({}), Departed()
    running = Attempt(pod="tune-train-late", start_time=NOW_TEXT)
    late = train_pod("tune-train-late", phase="Failed")

    async def story() -> Observed:
        client: Any = SimulatedCluster(world, lambda: None, lambda: None)
        asyncio.get_running_loop().call_later(0.01, departed.remember, late)
        return await observe(training(running), client, departed, Settings(), Shared(time.monotonic))

    assert [p.name for p in asyncio.run(story()).pods[Stage.TRAIN]] == ["tune-train-late"]
