"""An operator that dies before or after a chosen call to the API server, and the pods that its job has meanwhile.

One run is one job's life: a look, then what the user does, then each pod takes one step; again, until the job is final.
Nothing depends on the clock, so that the n-th call is the same in every run. An operator that died is followed by a new
one that remembers nothing; unless told otherwise, the pods take their step in between.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from kubernetes.aio import client as kubernetes_client

from finetune_api.failures import Failure, FailureCode
from finetune_api.job import ObjectMeta
from finetune_api.names import JOB_UID_LABEL, STAGE_LABEL
from finetune_api.report import Report
from finetune_api.trainer import ExitCode, Stage
from finetune_operator.apply import post_event
from finetune_operator.client import FINETUNE_JOBS, PODS, Cluster
from finetune_operator.observe import Departed
from finetune_operator.pace import Pace
from finetune_operator.plan.state import Event, Heard, Pod, timestamp
from finetune_operator.poll import Told
from finetune_operator.queue import Key, RetryLater
from finetune_operator.reconcile import Reconciler
from finetune_operator.settings import NetworkPolicySettings, Settings
from finetune_operator.shared import Shared
from history import Happened, History
from kubelet import CONTAINER
from world import MOMENT, PREPARED, progress, published

Manifest = dict[str, Any]
MOST_LOOKS = 80
SETTINGS = Settings(network_policy=NetworkPolicySettings(enabled=True))
"""As the chart has them, so that a job has all its children."""
FAILURES = {20: FailureCode.DATA_UNREACHABLE, 15: FailureCode.DIVERGED}
TURNS = 2
"""Of a training pod while it runs; in each it has done a step more, and its successor goes on from there."""


class OperatorDied(BaseException):
    """The operator's process has ended."""


@dataclass
class Death:
    """When the operator dies: at the n-th call to the API server, before or after it took effect; 0 = never."""

    at: int = 0
    after: bool = False
    calls: list[str] = field(default_factory=list)
    dead: bool = False
    """The operator that is at work now has died."""

    @property
    def died(self) -> bool:
        """Whether it has come to that."""
        return 0 < self.at <= len(self.calls)


class MortalCluster(Cluster):
    """The client, which is where the operator dies."""

    def __init__(self, api: kubernetes_client.ApiClient, death: Death) -> None:
        super().__init__(api)
        self._death, self._over = death, False
        self.written: list[Manifest] = []

    async def _call(self, method: str, path: str, **more: Any) -> Manifest:
        if self._over:  # whatever else this operator did at the same time ends with it
            raise OperatorDied
        self._death.calls.append(f"{method} {path.rsplit('/', 2)[-2]}")
        here = len(self._death.calls) == self._death.at
        if here and not self._death.after:
            self._over = True
            raise OperatorDied
        try:
            answer = await super()._call(method, path, **more)
            if method != "GET":
                self.written.append(answer)
        finally:
            if here:
                self._over = True
        if here:
            raise OperatorDied
        return answer


class Admin(Cluster):
    """The same client for who writes pod states and specs."""

    async def status(self, pod: Manifest, status: Manifest) -> Manifest:
        """Write a pod's status."""
        path = f"{PODS.path(pod['metadata']['namespace'], pod['metadata']['name'])}/status"
        return await self._call("PATCH", path, body={"status": status}, content="application/merge-patch+json")

    async def spec(self, namespace: str, job: str, **fields: Any) -> Manifest:
        """Change a FineTuneJob's spec."""
        path = FINETUNE_JOBS.path(namespace, job)
        return await self._call("PATCH", path, body={"spec": fields}, content="application/merge-patch+json")

    async def bind(self, pod: Manifest) -> None:
        """Put a pod on a node."""
        metadata = pod["metadata"]
        target = {"apiVersion": "v1", "kind": "Node", "name": "node"}
        body = {"metadata": {"name": metadata["name"]}, "target": target}
        await self._call("POST", f"{PODS.path(metadata['namespace'], metadata['name'])}/binding", body=body)

    async def remove(self, pod: Manifest) -> None:
        """Let a pod that is being deleted go, as the kubelet does when its containers have ended."""
        path = PODS.path(pod["metadata"]["namespace"], pod["metadata"]["name"])
        await self._call("DELETE", path, body={"gracePeriodSeconds": 0})


@dataclass(frozen=True)
class Life:
    """What happens to a job, but for the operator's deaths."""

    exits: dict[Stage, tuple[int, ...]] = field(default_factory=dict)
    """Exit codes of the pods of a stage, one after the other; the last for all after. 0 by default."""
    user: Callable[[Run], Awaitable[None]] | None = None
    """What the user does after a look; decides by what is there, and not by the number of looks."""
    waits_for: str = ""
    """What the user must have done before a training pod ends by itself, so that the two never race: a pod that has
    ended well while nobody looked is Complete, whatever was wished meanwhile."""
    spec: Manifest = field(default_factory=dict)


@dataclass
class Run:
    """One job's life with one death."""

    name: str
    namespace: str
    life: Life
    death: Death
    api: kubernetes_client.ApiClient
    admin: Admin
    history: History
    served: dict[str, Report] = field(default_factory=dict)
    """What the running pods say, by uid."""
    untold: list[tuple[ObjectMeta, Event, datetime]] = field(default_factory=list)
    done: set[str] = field(default_factory=set)
    """What the user has done."""

    def follow(self, _key: Key, _job: str, pods: Iterable[Pod]) -> Told:
        """What the poller would bring of those that run: an operator that has just started has asked them too."""
        running = [pod for pod in pods if pod.running and pod.uid in self.served]
        return Told({pod.uid: Heard(self.served[pod.uid], timestamp(_now())) for pod in running})

    def recorded(self, _key: Key) -> None:
        """As the poller does; these pods end without waiting for it."""

    def forget(self, _key: Key) -> None:
        """As the poller does; there is nothing to forget."""

    def tell(self, metadata: ObjectMeta, events: tuple[Event, ...], now: datetime) -> None:
        """As the announcer does; they are posted when the look has ended, so that calls have one order."""
        self.untold.extend((metadata, event, now) for event in events)

    async def live(self, manifest: Manifest) -> Manifest:
        """From the job's making to its final state, which is returned."""
        made = await self.admin.create(FINETUNE_JOBS, manifest)
        operator, cluster = self._operator(made)
        for _ in range(MOST_LOOKS):
            try:
                await operator.look((self.namespace, self.name))
                while self.untold:
                    await post_event(*self.untold.pop(0), cluster)
            except OperatorDied:
                self.untold.clear()
                del self.history.listeners[self.name]
                await self._settled(cluster)
                operator, cluster = self._operator()
            except RetryLater:
                pass
            made = await self.admin.get(FINETUNE_JOBS, self.namespace, self.name)
            if any(c["type"] in ("Complete", "Failed") for c in made.get("status", {}).get("conditions", ())):
                break
            await self._settled(cluster)
            if self.life.user is not None:
                await self.life.user(self)
            for pod in self.pods():
                await self._step(pod)
            await self._settled(cluster)
        else:
            raise AssertionError(f"{self.name} is not final after {MOST_LOOKS} looks: {made.get('status')}")
        del self.history.listeners[self.name]
        await self.history.reached(self.name, made)
        return made

    def pods(self) -> list[Manifest]:
        """The job's pods, oldest first."""
        return list(self.history.now(self.name, "pods").values())

    def status(self) -> Manifest:
        """The job's status as last told."""
        return dict(self.history.now(self.name, "finetunejobs")[self.name].get("status", {}))

    def _operator(self, *told: Manifest) -> tuple[Reconciler, MortalCluster]:
        """A new one, which remembers nothing; its watch begins now, and tells of the job if it is made after that."""
        unread = list(told)
        cluster, self._departed = MortalCluster(self.api, self.death), Departed()
        self.history.listeners[self.name] = self._remember
        poller: Any = self
        announcer: Any = self
        pace = Pace(_nobody, 1e6, time.monotonic)
        reconciler = Reconciler(
            cluster,
            poller,
            self._departed,
            SETTINGS,
            pace,
            announcer,
            _now,
            Shared(time.monotonic),
            news=lambda _: unread.pop() if unread else None,
        )
        return reconciler, cluster

    def _remember(self, happened: Happened) -> None:
        if happened.kind == "pods" and happened.type == "DELETED":
            self._departed.remember(happened.object)

    async def _settled(self, cluster: MortalCluster) -> None:
        """Wait until the controllers have done all that they will do of themselves."""
        for written in cluster.written:
            if written["kind"] != "Event":
                await self.history.reached(self.name, written)
        cluster.written.clear()
        await self.history.until(self.name, self._quiet, "the Job controller")

    def _quiet(self) -> bool:
        pods = self.pods()
        return all(_job_is_quiet(job, pods) for job in self.history.now(self.name, "jobs").values())

    async def _step(self, pod: Manifest) -> None:
        """One step of a pod: it starts, says something, says something else, ends; deleted, it saves and ends."""
        metadata, status = pod["metadata"], pod["status"]
        uid, turn = metadata["uid"], self._turn(pod)
        if status["phase"] in ("Succeeded", "Failed"):
            if "deletionTimestamp" in metadata:
                await self.admin.remove(pod)
                await self.history.until(self.name, lambda: metadata["name"] not in self._names(), "the pod to go")
            return
        stage = Stage.PREPARE if metadata["labels"][STAGE_LABEL] == "prepare" else Stage.TRAIN
        fresh = Report(job_uid=metadata["labels"][JOB_UID_LABEL], pod_uid=uid, stage=stage)
        report = self.served.get(uid, fresh)
        if "deletionTimestamp" in metadata:
            status = self._ended(pod, report, int(ExitCode.STOPPED))
        elif turn == 0:
            await self.admin.bind(pod)
            status = _running()
        elif stage is Stage.TRAIN and turn < TURNS:
            status = _running(turn)
        elif stage is Stage.TRAIN and self.life.waits_for and self.life.waits_for not in self.done:
            return
        else:
            status = self._ended(pod, report, self._exit_code(pod, stage))
        if stage is Stage.TRAIN and turn < TURNS:
            before = TURNS * self._number(pod)
            told = {**progress(before + turn + 1), "resumed_from_step": before}
            self.served[uid] = fresh.model_copy(update=told)
        await self.history.reached(self.name, await self.admin.status(pod, status))

    def _turn(self, pod: Manifest) -> int:
        """How many steps the pod has taken."""
        return int(pod["status"].get("message", "0")) + 1 if pod["status"]["phase"] == "Running" else 0

    def _names(self) -> set[str]:
        return {pod["metadata"]["name"] for pod in self.pods()}

    def _exit_code(self, pod: Manifest, stage: Stage) -> int:
        codes = self.life.exits.get(stage, (0,))
        return codes[min(self._number(pod), len(codes) - 1)]

    def _number(self, pod: Manifest) -> int:
        """How many pods of its stage were made before."""
        label = pod["metadata"]["labels"][STAGE_LABEL]
        made = [e.object["metadata"] for e in self.history.events[self.name] if (e.kind, e.type) == ("pods", "ADDED")]
        return [m["name"] for m in made if m["labels"][STAGE_LABEL] == label].index(pod["metadata"]["name"])

    def _ended(self, pod: Manifest, report: Report, code: int) -> Manifest:
        """The status of a pod that has ended with `code` and its last word."""
        word: Manifest = {"finished": True}
        if code == 0:
            word |= PREPARED if report.stage is Stage.PREPARE else published(self.name)
        elif code == ExitCode.STOPPED:
            word["failure"] = Failure(code=FailureCode.STOPPED, args={"step": "1"})
        elif code in FAILURES:
            word["failure"] = Failure(code=FAILURES[code])
        message = report.model_copy(update=word).model_dump_json(exclude_none=True) if code != 1 else ""
        end = {"exitCode": code, "reason": "Error" if code else "Completed", "message": message}
        times = {"startedAt": MOMENT, "finishedAt": MOMENT}
        return {"phase": "Failed" if code else "Succeeded", **_container({"terminated": {**end, **times}})}


def _job_is_quiet(job: Manifest, pods: list[Manifest]) -> bool:
    """Whether the Job controller has nothing to do with this Job until a pod or the Job changes."""
    own = [p for p in pods if any(o["uid"] == job["metadata"]["uid"] for o in p["metadata"].get("ownerReferences", ()))]
    held = {c["type"] for c in job.get("status", {}).get("conditions", ()) if c["status"] == "True"}
    ended = [p for p in own if p["status"]["phase"] in ("Succeeded", "Failed")]
    alive = [p for p in own if p not in ended]
    going = [p for p in alive if "deletionTimestamp" in p["metadata"]]
    told = (job.get("status", {}).get("active", 0), job.get("status", {}).get("terminating", 0))
    counted = all("finalizers" not in p["metadata"] for p in ended) and told == (len(alive) - len(going), len(going))
    if held & {"Complete", "Failed"}:
        return counted
    if job["spec"].get("suspend"):
        return "Suspended" in held and counted and alive == going
    return counted and "Suspended" not in held and len(alive) == 1


def _running(turn: int = 0) -> Manifest:
    """The status of a pod that runs; its message counts its steps, which no reader of ours looks at."""
    return {"phase": "Running", "message": str(turn), **_container({"running": {"startedAt": MOMENT}})}


def _container(state: Manifest) -> Manifest:
    common = {"name": CONTAINER, "image": "trainer", "imageID": "", "restartCount": 0}
    return {"containerStatuses": [{**common, "ready": "running" in state, "state": state}]}


async def _nobody(_key: Key) -> None:
    """Whom the pace wakes: the next look comes anyway."""


def _now() -> datetime:
    return datetime.now(UTC)


async def side_by_side(runs: list[Awaitable[Any]], at_once: int = 32) -> list[Any]:
    """So many of them at the same time; the first error ends all."""
    places = asyncio.Semaphore(at_once)

    async def one(run: Awaitable[Any]) -> Any:
        async with places:
            return await run

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(run)) for run in runs]
    return [task.result() for task in tasks]
