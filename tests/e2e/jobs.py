"""What the end-to-end tests share: a job's manifest, kubectl, and waiting for a fact with a deadline."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import bringup

NAMESPACE, DATA, OUTPUTS = "finetune-e2e", "finetune-data", "finetune-outputs"
T = TypeVar("T")
Manifest = dict[str, Any]


def a_job(name: str, **spec: Any) -> Manifest:
    """A DPO job on the tiny model; fields of the spec may be replaced."""
    return {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "model": f"pvc://{DATA}/tiny-chat",
            "trainingFile": f"pvc://{DATA}/train.jsonl",
            "trainingMethod": {"type": "DPO"},
            "hyperparameters": {"batchSize": 8, "learningRate": 3e-4},
            "output": {"uri": f"pvc://{OUTPUTS}"},
            **spec,
        },
    }


def long_job(name: str, epochs: int = 20, **spec: Any) -> Manifest:
    """A job of a minute or more that saves its state after every step."""
    hyperparameters = {"batchSize": 4, "nEpochs": epochs, "learningRate": 1e-4}
    return a_job(name, hyperparameters=hyperparameters, checkpointing={"recoveryPeriodSeconds": 0}, **spec)


def kubectl(*arguments: str, stdin: str | None = None, check: bool = True) -> str:
    """What kubectl prints; a failure is an error with what it said."""
    result = subprocess.run(["kubectl", *arguments], input=stdin, capture_output=True, text=True, check=False)
    if check and result.returncode:
        raise AssertionError(f"kubectl {' '.join(arguments)}: {result.stderr}")
    return result.stdout.strip()


def apply(manifest: Manifest) -> None:
    """kubectl apply."""
    kubectl("apply", "-f", "-", stdin=json.dumps(manifest))


def objects(kind: str, selector: str = "") -> list[Manifest]:
    """All objects of a kind in the namespace."""
    return list(json.loads(kubectl("-n", NAMESPACE, "get", kind, "-l", selector, "-o", "json"))["items"])


def children(kind: str, job: str) -> list[Manifest]:
    """The objects of a kind that were made for a job."""
    return objects(kind, f"finetune.dev/job-name={job}")


def status(job: str) -> Manifest:
    """The job's status."""
    return dict(json.loads(kubectl("-n", NAMESPACE, "get", "ftj", job, "-o", "json")).get("status", {}))


def condition(job: str, kind: str) -> Manifest:
    """One condition of the job; empty when it was never set."""
    return next((c for c in status(job).get("conditions", []) if c["type"] == kind), {})


def step(job: str) -> int:
    """The job's step as the status has it."""
    return int((status(job).get("progress") or {}).get("step", 0))


def until(fact: Callable[[], T], what: str, seconds: float = 240.0, period: float = 0.5) -> T:
    """Wait for a fact to become true.

    Raises:
        AssertionError: it did not in time.
    """
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := fact():
            return value
        time.sleep(period)
    raise AssertionError(f"not within {seconds:.0f} s: {what}")


def complete(job: str, seconds: float = 600.0) -> Manifest:
    """Wait as a user would, with kubectl wait, and return the status."""
    try:
        kubectl("-n", NAMESPACE, "wait", "--for=condition=Complete", f"ftj/{job}", f"--timeout={seconds:.0f}s")
    except AssertionError as error:
        raise AssertionError(f"{error}\n{json.dumps(status(job).get('conditions'), indent=1)}") from error
    return status(job)


def weights(job: str) -> str:
    """Digest of the weights that a job ended with, once it is Complete."""
    return str(complete(job)["checkpoints"][-1]["sha256"])


def fetch(source: str, folder: Path, claim: str = OUTPUTS) -> Path:
    """Copy a folder of a volume, by default the output volume, to this machine."""
    bringup.run("hack/volume.sh", "get", claim, NAMESPACE, source, str(folder), quiet=True)
    return folder


def create_shared(claim: str) -> None:
    """A claim that the pods of several nodes can mount."""
    environment = {**os.environ, "ACCESS_MODE": "ReadWriteMany"}
    create = ["hack/volume.sh", "create", claim, NAMESPACE]
    subprocess.run(create, cwd=bringup.ROOT, env=environment, check=True, capture_output=True)
