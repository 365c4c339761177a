"""Fifty jobs at once on a real node while the operator is killed again and again: everything must end right.

    python benchmarks/soak.py [--jobs 50] [--minutes 10] [--at-once 8] [--limit 45]

Brings the cluster, images and chart up; applies all jobs at once, sized so that only a few run at the same time; for
some minutes deletes the operator's pod every 20 s and a random training pod every 15 s; then leaves all alone. Each job
must be Complete within the limit, with the weights of a job that nothing happened to, two Jobs, and every checkpoint
once. Writes soak.md; ends with 1 if anything was wrong. The cluster stays if it was there before, and where something
was wrong, to be looked at.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "hack"))
import bringup
from kube import kubectl

NAMESPACE, DATA, OUTPUTS = "finetune-soak", "finetune-data", "finetune-outputs"
OPERATOR = ("-n", bringup.SYSTEM_NAMESPACE, "-l", "app.kubernetes.io/name=finetune-operator")
KILL_OPERATOR_SECONDS, DELETE_POD_SECONDS = 20.0, 15.0
WAIT_SECONDS = 5.0
EPOCHS, BATCH = 2, 4
Manifest = dict[str, Any]


@dataclass
class Soak:
    """What was done to the jobs, and what became of them."""

    jobs: list[str]
    operators_killed: int = 0
    pods_deleted: int = 0
    children: dict[str, set[str]] = field(default_factory=dict)
    """uids of the batch Jobs of each name that were ever seen."""
    most_running: int = 0
    finished: dict[str, float] = field(default_factory=dict)
    """Seconds from the start until each was seen final."""


def main() -> None:
    """The table of contents."""
    arguments = parsed()
    status = subprocess.run(["hack/cluster.sh", "status"], cwd=bringup.ROOT, capture_output=True, check=False)
    prepare()
    undisturbed = alone("undisturbed")
    soak = Soak([f"soak-{number:02}" for number in range(arguments.jobs)])
    begun = time.monotonic()
    apply([manifest(name, cpu_for(arguments.at_once)) for name in soak.jobs])
    disturb(soak, begun, arguments.minutes * 60)
    disturbed = time.monotonic() - begun
    follow(soak, begun, arguments.limit * 60)
    problems = judge(soak, undisturbed, arguments.at_once)
    text = report(soak, disturbed, problems, arguments.at_once)
    print(text)
    (Path(__file__).parent / "soak.md").write_text(text)
    if problems:
        sys.exit("the cluster is left as it is: `hack/cluster.sh down --wipe` takes it down")
    if status.returncode:
        bringup.run("hack/cluster.sh", "down", "--wipe", quiet=True)


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=50)
    parser.add_argument("--minutes", type=float, default=10.0, help="how long operator and pods are killed")
    parser.add_argument("--at-once", type=int, default=8, help="jobs that the node has room for")
    parser.add_argument("--limit", type=float, default=45.0, help="minutes until all must have ended right")
    return parser.parse_args()


def prepare() -> None:
    """Cluster, images, operator, and a namespace with the demo's model and data."""
    bringup.cluster()
    bringup.images()
    bringup.operator()
    bringup.empty_namespace(NAMESPACE, (DATA, OUTPUTS))
    with tempfile.TemporaryDirectory() as folder:
        bringup.run(sys.executable, "hack/demo/material.py", folder, quiet=True)
        bringup.run("hack/volume.sh", "put", DATA, NAMESPACE, folder, quiet=True)


def cpu_for(at_once: int) -> int:
    """The CPU request, in thousandths, with which `at_once` pods fill what the node has left."""
    node = kubectl_json("get", "nodes")["items"][0]
    free = thousandths(node["status"]["allocatable"]["cpu"])
    for pod in kubectl_json("get", "pods", "-A", "--field-selector=status.phase=Running")["items"]:
        for container in pod["spec"]["containers"]:
            free -= thousandths(container.get("resources", {}).get("requests", {}).get("cpu", "0"))
    return free // at_once


def thousandths(quantity: str) -> int:
    """100m and 2 in thousandths."""
    return int(quantity[:-1]) if quantity.endswith("m") else round(float(quantity) * 1000)


def manifest(name: str, cpu: int) -> Manifest:
    """A DPO job of some dozen steps that saves its state after each."""
    return {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "model": f"pvc://{DATA}/tiny-chat",
            "trainingFile": f"pvc://{DATA}/train.jsonl",
            "trainingMethod": {"type": "DPO"},
            "hyperparameters": {"batchSize": BATCH, "nEpochs": EPOCHS, "learningRate": 1e-4},
            "checkpointing": {"nCheckpoints": 2, "recoveryPeriodSeconds": 0},
            "output": {"uri": f"pvc://{OUTPUTS}"},
            "resources": {"cpu": f"{cpu}m", "memory": "2Gi", "gpusPerNode": 0},
        },
    }


def alone(name: str) -> Manifest:
    """The status of a job that nothing happens to."""
    apply([manifest(name, cpu_for(1) // 2)])
    kubectl("-n", NAMESPACE, "wait", "--for=condition=Complete", f"ftj/{name}", "--timeout=600s")
    return jobs()[name]


def disturb(soak: Soak, begun: float, seconds: float) -> None:
    """Kill and delete until the time is over."""
    chance = random.Random(5)
    next_kill, next_delete = begun + KILL_OPERATOR_SECONDS, begun + DELETE_POD_SECONDS
    while (now := time.monotonic()) < begun + seconds:
        if now >= next_kill:
            kubectl("delete", "pod", *OPERATOR, "--wait=false")
            soak.operators_killed, next_kill = soak.operators_killed + 1, next_kill + KILL_OPERATOR_SECONDS
        if now >= next_delete:
            soak.pods_deleted += delete_one(chance)
            next_delete += DELETE_POD_SECONDS
        look(soak, begun)
        time.sleep(1.0)


def delete_one(chance: random.Random) -> int:
    """Delete a random training pod that runs; returns how many that were."""
    running = [p["metadata"]["name"] for p in pods("train") if p["status"].get("phase") == "Running"]
    if not running:
        return 0
    kubectl("-n", NAMESPACE, "delete", "pod", chance.choice(running), "--wait=false", "--ignore-not-found")
    return 1


def follow(soak: Soak, begun: float, limit: float) -> None:
    """Wait until all are final or the time is over."""
    while len(soak.finished) < len(soak.jobs) and time.monotonic() - begun < limit:
        look(soak, begun)
        time.sleep(WAIT_SECONDS)


def look(soak: Soak, begun: float) -> None:
    """Note what is there."""
    for child in kubectl_json("-n", NAMESPACE, "get", "jobs.batch")["items"]:
        soak.children.setdefault(child["metadata"]["name"], set()).add(child["metadata"]["uid"])
    busy = {p["metadata"]["labels"]["finetune.dev/job-name"] for p in pods() if p["status"].get("phase") == "Running"}
    soak.most_running = max(soak.most_running, len(busy))
    for name, status in jobs().items():
        if name in soak.jobs and final(status) is not None:
            soak.finished.setdefault(name, time.monotonic() - begun)


def judge(soak: Soak, undisturbed: Manifest, at_once: int) -> list[str]:
    """What is wrong; empty = everything ended right."""
    found, now = [], jobs()
    for name in soak.jobs:
        status = now[name]
        if (end := final(status)) != "Complete":
            found.append(f"{name} is {end or 'not final'}: {json.dumps(status.get('conditions'))[:500]}")
            continue
        wanted = [(c["step"], c["type"], c["sha256"]) for c in undisturbed["checkpoints"]]
        got = [(c["step"], c["type"], c["sha256"]) for c in status["checkpoints"]]
        if got != wanted:
            found.append(f"{name} has published {got}, an undisturbed job {wanted}")
        if status["progress"]["step"] != undisturbed["progress"]["step"]:
            found.append(f"{name} ended at step {status['progress']['step']}")
    made = {child: len(uids) for child, uids in soak.children.items() if child.rpartition("-")[0] in soak.jobs}
    found += [f"Job {child} was made {times} times" for child, times in made.items() if times > 1]
    missing = {f"{name}-{stage}" for name in soak.jobs for stage in ("prepare", "train")} - made.keys()
    found += [f"Job {child} was never seen" for child in sorted(missing)]
    return found + ([f"{soak.most_running} jobs ran at once"] if soak.most_running > at_once else [])


def final(status: Manifest) -> str | None:
    """Complete, Failed or None."""
    held = [c["type"] for c in status.get("conditions", ()) if c["status"] == "True"]
    return next((kind for kind in held if kind in ("Complete", "Failed")), None)


def report(soak: Soak, disturbed: float, problems: list[str], at_once: int) -> str:
    """The page."""
    statuses = [status for name, status in jobs().items() if name in soak.jobs]
    attempts = Counter(len(status.get("attempts", ())) for status in statuses)
    last = max(soak.finished.values(), default=0.0)
    rows = [
        ("jobs applied at once", f"{len(soak.jobs)}, sized so that at most {at_once} run"),
        ("most seen running at once", f"{soak.most_running}"),
        ("disturbed for", f"{disturbed / 60:.1f} min"),
        ("operator pods deleted", f"{soak.operators_killed}"),
        ("training pods deleted", f"{soak.pods_deleted}"),
        ("attempts of a job: how many jobs", ", ".join(f"{n}: {count}" for n, count in sorted(attempts.items()))),
        ("disruptions, restarts in all", f"{total(statuses, 'disruptions')}, {total(statuses, 'restarts')}"),
        ("all final after", f"{last / 60:.1f} min" if len(soak.finished) == len(soak.jobs) else "not all"),
    ]
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    verdict = "\n".join(f"- {problem}" for problem in problems) or (
        "Every job is Complete, with the checkpoints of an undisturbed one to the digest, each once, and two Jobs."
    )
    machine = f"{os.cpu_count()} cores"
    return (
        f"# Soak\n\n{date.today()}; {machine}; real pods of the real images on one node. Written by `make soak`.\n\n"
        f"| what | found |\n|---|---|\n{table}\n\n{verdict}\n"
    )


def total(statuses: list[Manifest], counter: str) -> int:
    """The sum of a counter over all jobs."""
    return sum(status.get(counter, 0) for status in statuses)


def jobs() -> dict[str, Manifest]:
    """The status of each job."""
    items = kubectl_json("-n", NAMESPACE, "get", "ftj")["items"]
    return {item["metadata"]["name"]: item.get("status", {}) for item in items}


def pods(stage: str = "") -> list[Manifest]:
    """The pods of a stage, or of ours."""
    selector = f"finetune.dev/stage={stage}" if stage else "finetune.dev/stage"
    return list(kubectl_json("-n", NAMESPACE, "get", "pods", "-l", selector)["items"])


def apply(manifests: list[Manifest]) -> None:
    """All of them in one request list, as one `kubectl apply` does."""
    whole = {"apiVersion": "v1", "kind": "List", "items": manifests}
    kubectl("apply", "-f", "-", stdin=json.dumps(whole))


def kubectl_json(*arguments: str) -> Manifest:
    """What kubectl prints as JSON."""
    return dict(json.loads(kubectl(*arguments, "-o", "json")))


if __name__ == "__main__":
    main()
