"""A thousand jobs at once on a real control plane: `make scale`, a quarter of an hour, on a machine that is idle.

The operator runs as shipped, with the rights of its role. It is compared, in the same run, with a client that uses the
same library and concurrency and makes the same four writes for each job (FineTuneJob, status, Job, status) without
thinking, and with the bare creation of Jobs. Each begins on a control plane of its own: one that has just deleted
thousands of objects is a slower one. Client and operator take turns, and the median of their ratios counts: on a small
machine one round is as much as a third off.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "tests")]

from figures import QUIET_SECONDS, Figures, etcd_bytes, problems_of, report  # noqa: E402
from fleet import CHECKPOINTS, MOMENT, Fleet, full_report  # noqa: E402

from apiserver import ControlPlane, control_plane  # noqa: E402
from builders import (  # noqa: E402
    JOB_UID,
    NAMESPACE,
    NOW,
    before_start,
    job_manifest,
    make_child,
    make_job,
    make_pod,
    runtime_manifest,
)
from finetune_api.status import Condition, ConditionStatus  # noqa: E402
from finetune_api.trainer import Stage  # noqa: E402
from finetune_operator.client import (  # noqa: E402
    CLAIMS,
    FINETUNE_JOBS,
    JOBS,
    METADATA_ONLY,
    RUNTIMES,
    Cluster,
    Manifest,
    Resource,
    Unavailable,
)
from finetune_operator.plan.decide import decide  # noqa: E402
from finetune_operator.plan.state import Observed  # noqa: E402
from finetune_operator.plan.told import retold  # noqa: E402
from finetune_operator.settings import Settings  # noqa: E402
from world import OperatorProcess  # noqa: E402

SYSTEM, OPERATOR = "finetune-system", "system:serviceaccount:finetune-system:finetune-operator"
SAMPLE = "scale-sample"
RESULT = Path(__file__).with_name("scale.md")
AT_ONCE = Settings().workers
ROUNDS = 3
COUNTED_SECONDS, LISTED_SECONDS = 0.2, 5.0
"""How often objects are counted, which costs little, and those of a phase are listed, which costs much."""
AUDIT = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived", "ResponseStarted"],
    "rules": [{"level": "Metadata", "users": [OPERATOR]}, {"level": "None"}],
}


@dataclass
class Bench:
    """One control plane, and its users."""

    plane: ControlPlane
    cluster: Cluster
    figures: Figures
    folder: Path
    operator: OperatorProcess
    asked: Counter[str] = field(default_factory=Counter)
    read_to: int = 0

    async def each(self, count: int, work: Callable[[int], Awaitable[object]], what: str) -> None:
        """Do `work` for every number, AT_ONCE at the same time."""
        numbers, done, told = iter(range(count)), 0, time.monotonic()

        async def worker() -> None:
            nonlocal done, told
            for number in numbers:
                await work(number)
                done += 1
                if time.monotonic() - told > 2:
                    told = time.monotonic()
                    print(f"  {what}: {done}/{count}", flush=True)

        await asyncio.gather(*(worker() for _ in range(AT_ONCE)))

    async def count(self, resource: Resource, namespace: str) -> int:
        """How many objects there are, without reading them."""
        page = await self.cluster._call("GET", resource.path(namespace), query={"limit": "1"})
        return len(page["items"]) + int(page["metadata"].get("remainingItemCount", 0))

    async def until(
        self, number: Callable[[], Awaitable[int]], wanted: int, what: str, every: float = COUNTED_SECONDS
    ) -> None:
        """Wait, and tell how far it is. An API server that has too much to do to answer is asked again."""
        told, now = 0.0, -1
        while now != wanted:
            with suppress(Unavailable):
                now = await number()
            if now != wanted and time.monotonic() - told > 2:
                told = time.monotonic()
                print(f"  {what}: {now}/{wanted}", flush=True)
            await asyncio.sleep(0 if now == wanted else every)


Work = Callable[[Bench], Awaitable[object]]


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="A thousand jobs at once.")
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--finished", type=int, default=5000)
    parser.add_argument("--output", type=Path, default=RESULT)
    given = parser.parse_args()
    figures = Figures(given.jobs, given.finished)
    version = on_its_own(bare_jobs, figures)
    for turn in range(ROUNDS):
        on_its_own(plain_client, figures)
        on_its_own(applied if turn < ROUNDS - 1 else applied_and_run, figures)
    text = report(figures, version, AT_ONCE)
    given.output.write_text(text)
    print(text)
    if problems := problems_of(figures):
        sys.exit("; ".join(problems))


def on_its_own(work: Work, figures: Figures) -> str:
    """Do `work` on a fresh control plane; returns the version of Kubernetes."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        policy = folder / "audit.json"
        policy.write_text(json.dumps(AUDIT))
        flags = (f"--audit-policy-file={policy}", f"--audit-log-path={folder}/audit.log")
        with control_plane(folder / "plane", *flags) as plane:
            asyncio.run(measure(plane, figures, folder, work))
            return str(json.loads(plane.kubectl("get", "--raw", "/version"))["gitVersion"])


async def measure(plane: ControlPlane, figures: Figures, folder: Path, work: Work) -> None:
    """One of them, with everything installed."""
    cluster = await Cluster.connect(str(plane.kubeconfig), in_cluster=False)
    try:
        operator = await install(plane, cluster, folder)
        try:
            await work(Bench(plane, cluster, figures, folder, operator))
        finally:
            if operator.process is not None:
                operator.stop()
    finally:
        await cluster.close()


async def install(plane: ControlPlane, cluster: Cluster, folder: Path) -> OperatorProcess:
    """CRDs, the shipped role, namespaces with what the jobs name, a runtime; the operator is not started."""
    plane.kubectl("apply", "--server-side", "-f", str(ROOT / "crds"))
    plane.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=30s")
    chart = str(ROOT / "charts" / "finetune-operator")
    where = ["--namespace", SYSTEM, "--create-namespace", "--set", "crds.enabled=false"]
    installed = plane.run("helm", "upgrade", "--install", "finetune-operator", chart, *where)
    assert installed.returncode == 0, installed.stderr
    await cluster.create(RUNTIMES, runtime_manifest())
    for namespace in ("bare", "plain", "scale", "finished"):
        plane.kubectl("create", "namespace", namespace)
        for claim in ("finetune-data", "finetune-models"):
            spec = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
            await cluster.create(CLAIMS, {"metadata": {"name": claim, "namespace": namespace}, "spec": spec})
    token = plane.kubectl("create", "token", "finetune-operator", "--namespace", SYSTEM, "--duration", "4h").strip()
    kubeconfig = plane.kubeconfig_for(token, folder / "operator.kubeconfig")
    settings = folder / "settings.yaml"
    settings.write_text(json.dumps({"healthPort": 0, "createDefaultRuntime": False}))
    return OperatorProcess(kubeconfig, settings, folder / "operator.log")


def templates() -> tuple[str, str, str]:
    """The start status, the child Job and the status after it, as the operator makes them for the sample."""
    sample = make_job(SAMPLE)
    begun = decide(sample, before_start(), Settings(), NOW).status
    plan = decide(sample.model_copy(update={"status": begun}), Observed(), Settings(), NOW)
    (child,) = [manifest for manifest in plan.create if manifest["kind"] == "Job"]
    return json.dumps(begun.to_json()), json.dumps(child), json.dumps(plan.status.to_json())


def filled(template: str, namespace: str, name: str, uid: str) -> Manifest:
    """A template for another job."""
    text = template.replace(JOB_UID, uid).replace(SAMPLE, name)
    made: Manifest = json.loads(text.replace(f'"{NAMESPACE}"', f'"{namespace}"'))
    return made


def fresh(namespace: str, name: str) -> Manifest:
    """A FineTuneJob to create."""
    manifest = job_manifest(name, checkpointing={"nCheckpoints": CHECKPOINTS})
    return {**manifest, "metadata": {"name": name, "namespace": namespace}}


def with_status(written: Manifest, status: Manifest) -> Manifest:
    """What applies `status` to the object that was read or written last."""
    metadata = {key: written["metadata"][key] for key in ("name", "namespace", "uid", "resourceVersion")}
    return {"apiVersion": names_of(written)[0], "kind": names_of(written)[1], "metadata": metadata, "status": status}


def names_of(manifest: Manifest) -> tuple[str, str]:
    """apiVersion and kind."""
    return manifest["apiVersion"], manifest["kind"]


async def bare_jobs(bench: Bench) -> None:
    """Nothing but the Jobs."""
    _, child, _ = templates()

    async def create(number: int) -> None:
        manifest = filled(child, "bare", f"bare-{number}", JOB_UID)
        del manifest["metadata"]["ownerReferences"]
        await bench.cluster.create(JOBS, manifest)

    print("bare Jobs", flush=True)
    begun = time.monotonic()
    await bench.each(bench.figures.jobs, create, "bare Jobs")
    bench.figures.bare = time.monotonic() - begun
    print(f"  {bench.figures.bare:.1f} s", flush=True)


async def plain_client(bench: Bench) -> None:
    """The same four writes without any logic."""
    begun_status, child, made_status = templates()
    ends: list[float] = []

    async def write(number: int) -> None:
        name = f"plain-{number}"
        job = await bench.cluster.create(FINETUNE_JOBS, fresh("plain", name))
        uid = job["metadata"]["uid"]
        status = filled(begun_status, "plain", name, uid)
        job = await bench.cluster.apply_status(FINETUNE_JOBS, with_status(job, status))
        await bench.cluster.create(JOBS, filled(child, "plain", name, uid))
        ends.append(time.monotonic())
        status = filled(made_status, "plain", name, uid)
        await bench.cluster.apply_status(FINETUNE_JOBS, with_status(job, status))

    print("the plain client", flush=True)
    begun = time.monotonic()
    await bench.each(bench.figures.jobs, write, "the plain client")
    bench.figures.plain.append(max(ends) - begun)
    print(f"  {max(ends) - begun:.1f} s to the last Job", flush=True)


async def applied(bench: Bench) -> float:
    """All jobs at once, until the last child Job; returns when the first was applied."""
    figures, operator = bench.figures, bench.operator
    operator.start()
    operator.wait_for_log("Initial authentication has finished", 60)
    await asyncio.sleep(5)
    figures.memory["idle"] = memory(operator)
    print("the operator", flush=True)
    begun = time.monotonic()
    creating = asyncio.create_task(
        bench.each(figures.jobs, lambda n: bench.cluster.create(FINETUNE_JOBS, fresh("scale", f"scale-{n}")), "created")
    )
    await bench.until(lambda: bench.count(JOBS, "scale"), figures.jobs, "child Jobs")
    figures.operator.append(time.monotonic() - begun)
    print(f"  {figures.operator[-1]:.1f} s, {figures.ratios[-1]:.2f} times as long", flush=True)
    await creating
    return begun


async def applied_and_run(bench: Bench) -> None:
    """The same, until all run, and a minute of running."""
    figures, operator = bench.figures, bench.operator
    before, begun = requests(bench), await applied(bench)
    async with living(bench) as fleet:
        await bench.until(lambda: bench.count(JOBS, "scale"), 2 * figures.jobs, "Jobs of both stages")
        await bench.until(lambda: in_phase(bench, "Running"), figures.jobs, "running", LISTED_SECONDS)
        figures.running = time.monotonic() - begun
        figures.requests = requests(bench) - before
        print(f"a minute of running, after {figures.running:.0f} s", flush=True)
        await asyncio.sleep(QUIET_SECONDS)
        before, written, asked = requests(bench), etcd_bytes(bench.plane.etcd_port), fleet.asked
        await asyncio.sleep(QUIET_SECONDS)
        figures.quiet_requests = requests(bench) - before
        figures.etcd_bytes = (etcd_bytes(bench.plane.etcd_port) - written) / QUIET_SECONDS
        figures.polls = fleet.asked - asked
        figures.memory[f"{figures.jobs} running"] = memory(operator)
        stored = bench.plane.kubectl("get", "finetunejob", "scale-0", "--namespace", "scale", "-o", "json")
        figures.status_bytes = len(json.dumps(json.loads(stored)["status"], separators=(",", ":")))
        await finished_beside(bench)


@asynccontextmanager
async def living(bench: Bench) -> AsyncIterator[Fleet]:
    """The pods are alive."""
    fleet = Fleet(bench.cluster, "scale")
    task = asyncio.create_task(fleet.run())
    try:
        yield fleet
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def in_phase(bench: Bench, phase: str) -> int:
    """Jobs in a phase."""
    path = FINETUNE_JOBS.path("scale")
    page = await bench.cluster._call(
        "GET", path, query={"fieldSelector": f"status.phase={phase}"}, accept=METADATA_ONLY
    )
    return len(page["items"] or ())


async def finished_beside(bench: Bench) -> None:
    """Jobs that are over, with full statuses, beside those that run: the operator starts anew among them all."""
    figures, operator, sample = bench.figures, bench.operator, make_job(SAMPLE)
    pod = make_pod(make_child(sample, Stage.TRAIN))
    begun = decide(sample, before_start(), Settings(), NOW).status
    said = full_report(JOB_UID, pod.uid, SAMPLE, 4600)
    over = Condition(
        type="Complete", status=ConditionStatus.TRUE, reason="Succeeded", message="", last_transition_time=MOMENT
    )
    whole = retold(begun, pod, said, MOMENT, 32).model_copy(update={"conditions": (*begun.conditions, over)})
    template = json.dumps(whole.to_json())

    async def finish(number: int) -> None:
        name = f"over-{number}"
        job = await bench.cluster.create(FINETUNE_JOBS, fresh("finished", name))
        status = filled(template, "finished", name, job["metadata"]["uid"])
        await bench.cluster.apply_status(FINETUNE_JOBS, with_status(job, status))

    print("the operator starts among the running jobs", flush=True)
    operator.stop()
    operator.start()
    await watched(bench, figures.jobs)
    figures.memory[f"{figures.jobs} running, started among them"] = memory(operator)
    operator.stop()
    await bench.each(figures.finished, finish, "finished jobs")
    print("and among the finished ones too", flush=True)
    operator.start()
    await watched(bench, figures.jobs)
    figures.memory[f"{figures.jobs} running, {figures.finished} finished, started among them"] = memory(operator)
    figures.memory["at its highest"] = memory(operator, "VmHWM")


async def watched(bench: Bench, jobs: int) -> None:
    """Wait until the operator has looked at every running job, and a minute longer."""
    before = requests(bench)["get finetunejobs"]

    async def looks() -> int:
        return min(jobs, requests(bench)["get finetunejobs"] - before)

    await bench.until(looks, jobs, "looked at")
    await asyncio.sleep(QUIET_SECONDS)
    assert bench.operator.process is not None
    assert bench.operator.process.poll() is None


def memory(operator: OperatorProcess, which: str = "VmRSS") -> int:
    """Bytes of the operator's process."""
    assert operator.process is not None
    found = re.search(rf"{which}:\s+(\d+) kB", Path(f"/proc/{operator.process.pid}/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def requests(bench: Bench) -> Counter[str]:
    """The operator's requests so far by verb and resource, watches left out, from the API server's audit log."""
    log = bench.folder / "audit.log"
    if log.exists():
        with log.open() as lines:
            lines.seek(bench.read_to)
            while (line := lines.readline()).endswith("\n"):
                entry = json.loads(line)
                where = entry.get("objectRef", {})
                sub = f"/{where['subresource']}" if "subresource" in where else ""
                if entry["verb"] != "watch" and "resource" in where:
                    bench.asked[f"{entry['verb']} {where['resource']}{sub}"] += 1
                bench.read_to = lines.tell()
    return bench.asked.copy()


if __name__ == "__main__":
    main()
