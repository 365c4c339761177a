"""A fleet for `scale.py`: a thousand pods that say what a kubelet and a trainer would, in one process.

No container runs. Pods get an address of their own on loopback, and answer there with a report of full size that
changes with every question.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from finetune_api import names
from finetune_api.history import CURVES, History, Series
from finetune_api.report import Report
from finetune_api.schedule import spaced
from finetune_api.status import (
    Checkpoint,
    CheckpointType,
    DataStatus,
    JobWarning,
    Metrics,
    Progress,
    Recovery,
    Resolved,
    ResolvedFile,
)
from finetune_api.trainer import Stage
from finetune_operator.client import PODS, Cluster, Manifest
from finetune_operator.plan.pod import CONTAINER

MOMENT = "2026-01-01T00:00:00Z"
STEPS, CHECKPOINTS = 4600, 32
METRICS = {f"metric{number:02d}": 0.123456 * number for number in range(17)}
SELECTOR = f"{names.MANAGED_BY_LABEL}={names.MANAGED_BY}"
AT_ONCE = 8


def full_report(job_uid: str, pod_uid: str, job: str, step: int) -> Report:
    """What a long run with every checkpoint, curve and metric tells after `step` steps."""
    values = {**METRICS, "loss": 1.0 / step}
    curve = tuple((point * step // 50, 0.123456 * point) for point in range(50))
    return Report(
        job_uid=job_uid,
        pod_uid=pod_uid,
        stage=Stage.TRAIN,
        resumed_from_step=0,
        progress=Progress(display=f"{step}/{STEPS}", step=step, total_steps=STEPS, percentage=min(100, step // 46)),
        metrics=Metrics(train=values, eval=values),
        recovery=Recovery(step=step, time=MOMENT),
        history=History(series=tuple(Series(name=name, points=curve) for name in CURVES)),
        checkpoints=tuple(_checkpoint(job, at) for at in sorted(spaced(CHECKPOINTS, STEPS))),
        warnings=(JobWarning(reason="FewSteps", message="what a person should know, with numbers " * 4, step=1),),
    )


def _checkpoint(job: str, step: int) -> Checkpoint:
    return Checkpoint(
        name=f"{job}:{step}",
        step=step,
        type=CheckpointType.INTERMEDIATE,
        uri=f"pvc://finetune-outputs/scale/{job}/scale/model-0123abcd/checkpoints/step-{step}",
        time=MOMENT,
        size_bytes=12345678,
        sha256="ab" * 32,
        metrics={f"eval{name[0].upper()}{name[1:]}": value for name, value in METRICS.items()},
    )


def prepared(job_uid: str, pod_uid: str) -> Report:
    """The last word of a pod that has prepared the data."""
    return Report(
        job_uid=job_uid,
        pod_uid=pod_uid,
        stage=Stage.PREPARE,
        finished=True,
        data=DataStatus(format="preference", rows=10_000, pairs=10_000, total_tokens=5_000_000),
        resolved=Resolved(total_steps=STEPS, training_file=ResolvedFile(sha256="a" * 64, size_bytes=9)),
    )


class Fleet:
    """Brings pods to life, and answers for them."""

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        self._cluster, self._namespace = cluster, namespace
        self._known: set[str] = set()
        self._serving: dict[str, tuple[str, str, str]] = {}
        """By address: uid of the job, uid of the pod, name of the job."""
        self._servers: list[asyncio.Server] = []
        self._steps: dict[str, int] = {}
        self._slots = asyncio.Semaphore(AT_ONCE)
        self.asked = 0

    async def run(self) -> None:
        """Look for new pods until cancelled."""
        try:
            while True:
                new = [pod for pod in await self._waiting() if pod["metadata"]["uid"] not in self._known]
                await asyncio.gather(*(self._live(pod) for pod in new))
                await asyncio.sleep(0.5)
        finally:
            for server in self._servers:
                server.close()

    async def _waiting(self) -> list[Manifest]:
        """Pods that nobody has brought to life: to list all of them would be most of what the API server does."""
        query = {"labelSelector": SELECTOR, "fieldSelector": "status.phase=Pending"}
        page = await self._cluster._call("GET", PODS.path(self._namespace), query=query)
        pods: list[Manifest] = page["items"]
        return pods

    async def _live(self, pod: Manifest) -> None:
        self._known.add(pod["metadata"]["uid"])
        labels, uid = pod["metadata"]["labels"], pod["metadata"]["uid"]
        job_uid, job = labels[names.JOB_UID_LABEL], labels[names.JOB_NAME_LABEL]
        if labels[names.STAGE_LABEL] == "prepare":
            word = json.dumps(prepared(job_uid, uid).to_json())
            ended = {"exitCode": 0, "reason": "Completed", "message": word, "startedAt": MOMENT, "finishedAt": MOMENT}
            await self._say(pod, "Succeeded", {"terminated": ended}, None)
            return
        number = len(self._serving)
        address = f"127.9.{number // 250}.{number % 250 + 1}"
        self._serving[address] = (job_uid, uid, job)
        self._servers.append(await asyncio.start_server(self._answer, address, names.PROGRESS_PORT))
        await self._say(pod, "Running", {"running": {"startedAt": MOMENT}}, address)

    async def _say(self, pod: Manifest, phase: str, state: Manifest, address: str | None) -> None:
        container = {
            "name": CONTAINER,
            "image": "trainer",
            "imageID": "",
            "ready": "running" in state,
            "restartCount": 0,
            "state": state,
        }
        status: dict[str, Any] = {"phase": phase, "containerStatuses": [container]}
        if address is not None:
            status |= {"podIP": address, "podIPs": [{"ip": address}]}
        path = PODS.path(self._namespace, pod["metadata"]["name"]) + "/status"
        async with self._slots:
            # The client has no call for this: only a kubelet writes a pod's status.
            await self._cluster._call("PATCH", path, body={"status": status}, content="application/merge-patch+json")

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            address = writer.get_extra_info("sockname")[0]
            job_uid, pod_uid, job = self._serving[address]
            self.asked += 1
            step = self._steps[address] = self._steps.get(address, 0) + 1
            body = json.dumps(full_report(job_uid, pod_uid, job, step).to_json()).encode()
            head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
            writer.write(head.encode() + body)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            return
        finally:
            writer.close()
