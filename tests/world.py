"""A namespace with a running operator, a kubelet's stand-in and everything that a small job needs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apiserver import Api, ControlPlane
from finetune_api.failures import Failure
from finetune_api.status import (
    Checkpoint,
    CheckpointType,
    DataStatus,
    Metrics,
    OutputStatus,
    Progress,
    Recovery,
    Resolved,
    ResolvedFile,
)
from finetune_api.trainer import Stage
from judges import collection
from kubelet import Behaviour, Kubelet, Script, as_json, wait_for
from manifests import ROOT, job

MOMENT = "2026-01-01T00:00:00Z"
STEPS = 4
ROWS = ResolvedFile(sha256="a" * 64, size_bytes=9)
PREPARED: dict[str, Any] = {
    "data": DataStatus(format="conversation", rows=64, total_tokens=4096),
    "resolved": Resolved(
        total_steps=STEPS, max_seq_length=128, training_file=ResolvedFile(sha256="a" * 64, size_bytes=9)
    ),
}


def progress(step: int) -> dict[str, Any]:
    """What training says after `step` of STEPS steps."""
    return {
        "progress": Progress(display=f"{step}/{STEPS}", step=step, total_steps=STEPS, percentage=100 * step // STEPS),
        "metrics": Metrics(train={"loss": 1.0 / (step + 1)}),
        "recovery": Recovery(step=step, time=MOMENT),
        "resumed_from_step": 0,
    }


def published(job: str, uri: str = "pvc://finetune-outputs/x", step: int = STEPS) -> dict[str, Any]:
    """What training says at its end."""
    checkpoint = Checkpoint(
        name=f"{job}:{step}",
        step=step,
        type=CheckpointType.FINAL,
        uri=f"{uri}/checkpoints/step-{step}",
        time=MOMENT,
        size_bytes=1,
        sha256="c" * 64,
    )
    told = {name: value for name, value in progress(step).items() if name != "resumed_from_step"}
    return {**told, "checkpoints": (checkpoint,), "output": OutputStatus(adapter_uri=f"{uri}/adapter")}


def script(name: str, prepare: Behaviour | None = None, train: list[Behaviour] | None = None) -> Script:
    """Pods that do well; `train` says what the first, second, ... training pod does, the last one for all after."""
    well = Behaviour(tuple(progress(step) for step in range(1, STEPS + 1)), word=published(name))

    def behave(stage: Stage, attempt: int) -> Behaviour:
        if stage is Stage.PREPARE:
            return prepare or Behaviour((PREPARED,), seconds=0.2)
        return (train or [well])[min(attempt, len(train or [well]) - 1)]

    return behave


def well(name: str) -> Behaviour:
    """A training pod that does well."""
    return script(name)(Stage.TRAIN, 0)


def failing(failure: Failure, **more: Any) -> Behaviour:
    """A pod that ends so."""
    return Behaviour((), failure=failure, **more)


@dataclass
class OperatorProcess:
    """The operator as a process of its own, with the rights of its shipped role."""

    kubeconfig: Path
    settings: Path
    log: Path
    package: Path = ROOT / "operator"
    """Where its code lies: a folder or a wheel."""
    log_format: str = "text"
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it."""
        assert self.process is None
        command = [sys.executable, *self.program(), "--log-format", self.log_format]
        paths = [str(self.package), os.environ.get("PYTHONPATH", "")]
        environment = {
            **{key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ},
            "PYTHONPATH": os.pathsep.join(path for path in paths if path),
            "FINETUNE_SETTINGS": str(self.settings),
            **self.credentials(),
        }
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, env=environment, cwd=ROOT, stdout=log, stderr=log)

    def program(self) -> list[str]:
        """What Python runs."""
        return ["-m", "finetune_operator"]

    def credentials(self) -> dict[str, str]:
        """The environment that tells it where the API server is."""
        return {"KUBECONFIG": str(self.kubeconfig)}

    def kill(self) -> None:
        """End it in the middle of whatever it does."""
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """Ask it to end; returns its exit code."""
        return self._end(signal.SIGTERM)

    def _end(self, how: signal.Signals) -> int:
        assert self.process is not None
        ended, self.process = self.process, None
        assert ended.poll() is None, f"the operator has ended by itself: {self.log.read_text()[-3000:]}"
        ended.send_signal(how)
        return ended.wait(timeout=20)

    def restart(self) -> None:
        """Kill it and start another."""
        self.kill()
        self.start()

    def wait_for_log(self, words: str, seconds: float = 20) -> None:
        """Wait until it has said so."""
        deadline = time.monotonic() + seconds
        while words not in self.log.read_text():
            alive = self.process is not None and self.process.poll() is None and time.monotonic() < deadline
            assert alive, f"{words!r} is not in: {self.log.read_text()[-3000:]}"
            time.sleep(0.05)


@dataclass
class World:
    """What a lifecycle test works with."""

    plane: ControlPlane
    api: Api
    kubelet: Kubelet
    operator: OperatorProcess
    namespace: str

    def apply(self, name: str, behaviour: Script | None = None, **spec: Any) -> str:
        """Create a job; its pods behave as told, well by default. Returns its uid."""
        self.kubelet.scripts[self.namespace, name] = behaviour or script(name)
        return str(self.api.post(self.jobs, job(name, **spec)).must()["metadata"]["uid"])

    @property
    def jobs(self) -> str:
        """The path of the namespace's FineTuneJobs."""
        return collection(job(), self.namespace)

    def get(self, name: str) -> dict[str, Any]:
        """The job as it is."""
        return self.api.get(f"{self.jobs}/{name}").must()

    def status(self, name: str) -> dict[str, Any]:
        """Its status; empty before the operator has seen it."""
        return self.get(name).get("status", {})

    def condition(self, name: str, kind: str) -> dict[str, Any]:
        """One of its conditions; empty if it was never set."""
        return next((c for c in self.status(name).get("conditions", []) if c["type"] == kind), {})

    def wait(self, name: str, kind: str, status: str = "True", reason: str | None = None, seconds: float = 30) -> Any:
        """Wait for a condition; returns it."""

        def found() -> Any:
            condition = self.condition(name, kind)
            right = condition.get("status") == status and reason in (None, condition.get("reason"))
            return condition if right else None

        what = f"{kind}={status} {reason or ''} of {name}"
        try:
            return wait_for(found, what, seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}; its status: {as_json(self.status(name))}") from None

    def kubectl_wait(self, name: str, condition: str, seconds: int = 120) -> None:
        """Wait for a condition as a user does."""
        where = ("-n", self.namespace, f"ftj/{name}", f"--timeout={seconds}s")
        self.plane.kubectl("wait", f"--for=condition={condition}", *where)

    def ask(self, name: str, **spec: Any) -> None:
        """Change the job's spec."""
        self.api.patch(f"{self.jobs}/{name}", {"spec": spec}).must()

    def children(self, name: str) -> dict[str, dict[str, Any]]:
        """The batch Jobs of a job by name."""
        listed = self.api.get(f"/apis/batch/v1/namespaces/{self.namespace}/jobs").must()["items"]
        return {j["metadata"]["name"]: j for j in listed if j["metadata"]["name"].startswith(f"{name}-")}

    def pods(self, stage: str) -> list[dict[str, Any]]:
        """The pods of a stage."""
        path = f"/api/v1/namespaces/{self.namespace}/pods?labelSelector=finetune.dev%2Fstage%3D{stage}"
        return list(self.api.get(path).must()["items"])

    def path(self, plural: str, name: str = "") -> str:
        """Where objects of a kind lie in the namespace, or one of them."""
        where = f"/namespaces/{self.namespace}/{plural}" + (f"/{name}" if name else "")
        group = {"jobs": "batch/v1", "networkpolicies": "networking.k8s.io/v1"}.get(plural)
        return f"/apis/{group}{where}" if group else f"/api/v1{where}"

    def found(self, plural: str, name: str) -> dict[str, Any] | None:
        """The object, if it is there."""
        answer = self.api.get(self.path(plural, name))
        return answer.body if answer.ok else None

    def restrict(self) -> None:
        """Have the namespace enforce the restricted Pod Security Standard."""
        labels = {"pod-security.kubernetes.io/enforce": "restricted"}
        self.api.patch(f"/api/v1/namespaces/{self.namespace}", {"metadata": {"labels": labels}}).must()

    def prepare(self) -> None:
        """Make what a small job needs: claims for data and output; and wait for the default service account."""
        furnish(self.api, self.namespace)

    def claim(self, name: str) -> None:
        """Make a persistent volume claim."""
        make_claim(self.api, self.namespace, name)

    def made_since(self, version: str) -> Counter[str]:
        """How often a Job of each name was made after `version`: from the API server's own history."""
        path = f"/apis/batch/v1/namespaces/{self.namespace}/jobs?watch=1&timeoutSeconds=1&resourceVersion={version}"
        lines = self.plane.kubectl("get", "--raw", path).splitlines()
        events = [json.loads(line) for line in lines]
        assert not [event for event in events if event["type"] == "ERROR"], events
        return Counter(event["object"]["metadata"]["name"] for event in events if event["type"] == "ADDED")

    def version(self) -> str:
        """The resource version of now."""
        listed = self.api.get(f"/apis/batch/v1/namespaces/{self.namespace}/jobs").must()
        return str(listed["metadata"]["resourceVersion"])


def furnish(api: Api, namespace: str) -> None:
    """Make what a small job needs in a new namespace, and wait for what every namespace gets."""
    for claim in ("finetune-data", "finetune-outputs"):
        make_claim(api, namespace, claim)
    account = f"/api/v1/namespaces/{namespace}/serviceaccounts/default"
    wait_for(lambda: api.get(account).ok, "the default service account")


def make_claim(api: Api, namespace: str, name: str) -> None:
    """Make a persistent volume claim."""
    spec = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
    path = f"/api/v1/namespaces/{namespace}/persistentvolumeclaims"
    api.post(path, {"metadata": {"name": name}, "spec": spec}).must()
