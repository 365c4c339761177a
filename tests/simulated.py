"""A cluster in memory that can die under the operator at any write: for what no real API server does on demand.

It keeps what the operator rests on: resourceVersion and uid preconditions, names that are taken, a Job controller that
runs one pod at a time and follows podFailurePolicy, and pods that follow a script. Real servers are for the
integration tests; this one is for interleavings.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from builders import NOW
from finetune_api import names
from finetune_api.failures import Failure, FailureCode
from finetune_api.report import Report
from finetune_api.status import Checkpoint, CheckpointType, DataStatus, OutputStatus, Recovery, Resolved
from finetune_api.trainer import ExitCode, Stage
from finetune_operator.client import JOBS, PODS, AlreadyExists, Conflict, NotFound, Resource
from finetune_operator.plan.state import timestamp

Manifest = dict[str, Any]
Key = tuple[str, str, str]

CAUSES = {3: FailureCode.STOPPED, 11: FailureCode.DATA_INVALID, 15: FailureCode.DIVERGED}
"""What a trainer says that ends so."""


class OperatorDied(BaseException):
    """The operator's process ended at this write."""


class World:
    """Objects, and what moves them between the operator's looks."""

    def __init__(self, script: dict[Stage, list[int]]) -> None:
        self.objects: dict[Key, Manifest] = {}
        self.now: datetime = NOW
        self.created: list[str] = []
        """Names of Jobs, in the order of their making."""
        self.pods_made = 0
        self.stopped_with = 3
        """Exit code of a pod whose Job is suspended."""
        self.uncounted: set[str] = set()
        """Pods that the Job controller has ended itself, which it leaves out of its count."""
        self.most_pods_at_once = 0
        self._script = {stage: iter(exits) for stage, exits in script.items()}
        self._counter = itertools.count(1)
        self._steps = itertools.count(10, 10)

    def add(self, resource: Resource, manifest: Manifest) -> Manifest:
        """Store an object as the API server would."""
        metadata = manifest["metadata"]
        stored = copy.deepcopy(manifest)
        number = next(self._counter)
        stored["metadata"] = {
            "uid": f"uid-{number}",
            "generation": 1,
            "creationTimestamp": timestamp(self.now),
            **copy.deepcopy(metadata),
            "resourceVersion": str(number),
        }
        self.objects[(resource.plural, metadata.get("namespace", ""), metadata["name"])] = stored
        return stored

    def touch(self, manifest: Manifest) -> None:
        """Note a change."""
        manifest["metadata"]["resourceVersion"] = str(next(self._counter))

    def of(self, plural: str) -> list[Manifest]:
        """All objects of a kind."""
        return [manifest for (kind, _, _), manifest in self.objects.items() if kind == plural]

    def step(self) -> None:
        """Half a minute passes: the Job controller and the kubelet do their part."""
        self.now += timedelta(seconds=30)
        for job in self.of("jobs"):
            self._control(job)
        for pod in list(self.of("pods")):
            self._run(pod)

    def delete_job(self, name: str) -> None:
        """Somebody deletes a batch/v1 Job; its pods go in the background, with the next step."""
        self.objects.pop(("jobs", "team", name), None)

    def _pods(self, job: Manifest) -> list[Manifest]:
        uid = job["metadata"]["uid"]
        return [p for p in self.of("pods") if p["metadata"]["ownerReferences"][0]["uid"] == uid]

    def _control(self, job: Manifest) -> None:
        status = job.setdefault("status", {})
        if any(c["type"] in ("Complete", "Failed") for c in status.get("conditions", [])):
            return
        pods = self._pods(job)
        ends = [_exit_code(pod) for pod in pods]
        active = [pod for pod, end in zip(pods, ends, strict=True) if end is None]
        status["active"], status["terminating"] = len(active), 0
        counted = [end for pod, end in zip(pods, ends, strict=True) if pod["metadata"]["uid"] not in self.uncounted]
        failures = [end for end in counted if end not in (None, 0, 3, 4)]
        if 0 in ends:
            status["conditions"] = [{"type": "Complete", "status": "True"}]
        elif any(end in range(10, 20) for end in failures) or len(failures) > job["spec"]["backoffLimit"]:
            status["conditions"] = [{"type": "Failed", "status": "True", "message": "the Job controller's words"}]
        elif job["spec"].get("suspend"):
            for pod in active:
                _end(pod, self.stopped_with, "", self.now)
                self.uncounted.add(pod["metadata"]["uid"])
            status["conditions"] = [] if active else [{"type": "Suspended", "status": "True"}]
        elif not active:
            self._make_pod(job)
        self.touch(job)

    def _make_pod(self, job: Manifest) -> None:
        self.pods_made += 1
        template = job["spec"]["template"]
        metadata = {
            "name": f"{job['metadata']['name']}-{self.pods_made:05d}",
            "namespace": job["metadata"]["namespace"],
            "labels": template["metadata"]["labels"],
            "ownerReferences": [
                {"kind": "Job", "name": job["metadata"]["name"], "uid": job["metadata"]["uid"], "controller": True}
            ],
        }
        self.add(PODS, {"metadata": metadata, "spec": template["spec"], "status": {"phase": "Pending"}})
        unfinished = [p for p in self.of("pods") if _exit_code(p) is None]
        self.most_pods_at_once = max(self.most_pods_at_once, len(unfinished))

    def _run(self, pod: Manifest) -> None:
        owner = pod["metadata"]["ownerReferences"][0]
        orphan = all(job["metadata"]["uid"] != owner["uid"] for job in self.of("jobs"))
        if orphan:
            del self.objects[("pods", pod["metadata"]["namespace"], pod["metadata"]["name"])]
        elif pod["status"]["phase"] == "Pending":
            running = {"name": "trainer", "state": {"running": {"startedAt": timestamp(self.now)}}}
            pod["status"] = {"phase": "Running", "podIP": "10.0.0.1", "containerStatuses": [running]}
        elif _exit_code(pod) is None:
            stage = Stage(pod["metadata"]["labels"][names.STAGE_LABEL].capitalize())
            code = next(self._script[stage])
            _end(pod, code, self._last_word(pod, stage, code), self.now)

    def _last_word(self, pod: Manifest, stage: Stage, code: int) -> str:
        step = next(self._steps)
        said: dict[str, Any] = {
            "job_uid": pod["metadata"]["labels"][names.JOB_UID_LABEL],
            "pod_uid": pod["metadata"]["uid"],
            "stage": stage,
            "finished": True,
        }
        if stage is Stage.PREPARE:
            said |= {"data": DataStatus(rows=100), "resolved": Resolved(total_steps=20)}
        elif code == 0:
            said |= {"checkpoints": (_checkpoint(),), "output": OutputStatus(adapter_uri="pvc://finetune-models/a")}
        else:
            said |= {"recovery": Recovery(step=step, time=timestamp(self.now)), "resumed_from_step": step - 10}
        if code in CAUSES:
            said |= {"failure": Failure(code=CAUSES[code])}
        return Report(**said).model_dump_json()


class SimulatedCluster:
    """The client's interface onto a World; `before_write` and `after_write` may raise OperatorDied."""

    def __init__(self, world: World, before_write: Callable[[], None], after_write: Callable[[], None]) -> None:
        self._world, self._before, self._after = world, before_write, after_write

    async def get(self, resource: Resource, namespace: str | None, name: str) -> Manifest:
        return copy.deepcopy(self._find(resource, namespace or "", name))

    async def list(
        self, resource: Resource, namespace: str | None = None, *, labels: str = "", metadata_only: bool = False
    ) -> list[Manifest]:
        wanted = dict(pair.split("=") for pair in labels.split(",")) if labels else {}
        return [
            copy.deepcopy(m)
            for m in self._world.of(resource.plural)
            if wanted.items() <= m["metadata"].get("labels", {}).items()
        ]

    async def create(self, resource: Resource, manifest: Manifest) -> Manifest:
        self._before()
        metadata = manifest["metadata"]
        if resource.plural == "events":
            return manifest
        if (resource.plural, metadata["namespace"], metadata["name"]) in self._world.objects:
            raise AlreadyExists(metadata["name"])
        if resource is JOBS:
            self._world.created.append(metadata["name"])
        made = self._world.add(resource, manifest)
        self._after()
        return copy.deepcopy(made)

    async def apply_status(self, resource: Resource, manifest: Manifest) -> Manifest:
        self._before()
        metadata = manifest["metadata"]
        stored = self._find(resource, metadata["namespace"], metadata["name"])
        if any(stored["metadata"][key] != metadata[key] for key in ("uid", "resourceVersion")):
            raise Conflict(metadata["name"])
        stored["status"] = copy.deepcopy(manifest["status"])
        self._world.touch(stored)
        self._after()
        return copy.deepcopy(stored)

    async def hold(
        self,
        namespace: str,
        name: str,
        uid: str,
        *,
        suspend: bool | None,
        mark: str | None,
        labels: dict[str, str | None] | None = None,
    ) -> Manifest:
        self._before()
        stored = self._find(JOBS, namespace, name)
        if stored["metadata"]["uid"] != uid:
            raise Conflict(name)
        stored["spec"]["suspend"] = suspend
        annotations = stored["metadata"].setdefault("annotations", {})
        annotations.pop(names.STOP_ANNOTATION, None)
        annotations |= {names.STOP_ANNOTATION: mark} if mark is not None else {}
        self._world.touch(stored)
        self._after()
        return copy.deepcopy(stored)

    def _find(self, resource: Resource, namespace: str, name: str) -> Manifest:
        where = namespace if resource.namespaced else ""
        try:
            return self._world.objects[(resource.plural, where, name)]
        except KeyError:
            raise NotFound(f"{resource.plural} {name}") from None


def _end(pod: Manifest, code: int, message: str, now: datetime) -> None:
    running = pod["status"].get("containerStatuses", [{"state": {}}])[0]["state"].get("running", {})
    end = {"exitCode": code, "finishedAt": timestamp(now), "message": message, **running}
    pod["status"] = {
        **pod["status"],
        "phase": "Succeeded" if code == ExitCode.DONE else "Failed",
        "containerStatuses": [{"name": "trainer", "state": {"terminated": end}}],
    }


def _exit_code(pod: Manifest) -> int | None:
    for container in pod["status"].get("containerStatuses", []):
        if "terminated" in container["state"]:
            return int(container["state"]["terminated"]["exitCode"])
    return None


def _checkpoint() -> Checkpoint:
    return Checkpoint(
        name="tune:20",
        step=20,
        type=CheckpointType.FINAL,
        uri="pvc://finetune-models/a",
        time=timestamp(NOW),
        size_bytes=1,
        sha256="ab" * 32,
    )
