"""Objects for tests of the operator: each a whole, valid thing, of which a test changes what it is about."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from finetune_api import names
from finetune_api.failures import Failure, FailureCode
from finetune_api.job import FineTuneJob, job_from
from finetune_api.report import Report
from finetune_api.runtime import FineTuneRuntime, runtime_from
from finetune_api.status import Checkpoint, CheckpointType, Condition, Progress, Recovery
from finetune_api.trainer import Stage
from finetune_operator.plan.state import ChildJob, Heard, Observed, Owner, Pod

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
NOW_TEXT = "2026-01-02T03:04:05Z"
JOB_UID = "6f1c2b3a-0000-4000-8000-000000000001"
NAMESPACE = "team"
EVERYTHING: dict[str, Any] = {
    "claims": {"read": ["*"], "write": ["*"]},
    "configMaps": ["*"],
    "uriPrefixes": {"read": ["hf://"], "write": []},
}


def job_manifest(name: str = "tune", *, uid: str = JOB_UID, status: Any = None, **spec: Any) -> dict[str, Any]:
    """A LoRA job of SFT on two claims; a keyword with value None removes a field of its spec."""
    whole = {
        "runtime": "gpu",
        "model": "org/tiny",
        "trainingFile": "pvc://finetune-data/train.jsonl",
        "output": {"uri": "pvc://finetune-models/out"},
        **spec,
    }
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.JOB_KIND,
        "metadata": {
            "name": name,
            "namespace": NAMESPACE,
            "uid": uid,
            "generation": 1,
            "resourceVersion": "1",
            "creationTimestamp": NOW_TEXT,
        },
        "spec": {key: value for key, value in whole.items() if value is not None},
        **({"status": status} if status is not None else {}),
    }


def make_job(name: str = "tune", **fields: Any) -> FineTuneJob:
    """The job of `job_manifest`, parsed."""
    return job_from(job_manifest(name, **fields))


def runtime_manifest(name: str = "gpu", **spec: Any) -> dict[str, Any]:
    """A runtime that allows every claim and config map and lists no models."""
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.RUNTIME_KIND,
        "metadata": {"name": name, "uid": f"uid-of-{name}", "generation": 3},
        "spec": {"image": "trainer:1", "access": EVERYTHING, **spec},
    }


def make_runtime(name: str = "gpu", **spec: Any) -> FineTuneRuntime:
    """The runtime of `runtime_manifest`, parsed."""
    return runtime_from(runtime_manifest(name, **spec))


def before_start(*runtimes: FineTuneRuntime, **more: Any) -> Observed:
    """Everything that `make_job` names is there."""
    found: dict[str, Any] = {
        "claims": frozenset({"finetune-data", "finetune-models"}),
        "access_modes": {"finetune-data": ("ReadWriteMany",), "finetune-models": ("ReadWriteMany",)},
        "service_accounts": frozenset({"default"}),
        **more,
    }
    return Observed(runtimes=runtimes or (make_runtime(),), **found)


def make_child(job: FineTuneJob, stage: Stage, *, owner_uid: str | None = None, **fields: Any) -> ChildJob:
    """The stage's Job of `job`."""
    name = f"{job.metadata.name}-{stage.value.lower()}"
    owner = Owner(names.JOB_KIND, job.metadata.name, owner_uid or job.metadata.uid or "")
    return ChildJob(**{"name": name, "uid": f"uid-of-{name}", "owner": owner, **fields})


def make_pod(child: ChildJob, suffix: str = "aaaaa", **fields: Any) -> Pod:
    """A pod of `child`, running."""
    return Pod(
        **{
            "name": f"{child.name}-{suffix}",
            "uid": f"uid-of-{child.name}-{suffix}",
            "job_uid": child.uid,
            "created": NOW_TEXT,
            "started": NOW_TEXT,
            "running": "ended" not in fields and "waiting" not in fields,
            **fields,
        }
    )


def report_for(pod: Pod, stage: Stage, **fields: Any) -> Report:
    """What `pod` says."""
    return Report(**{"job_uid": JOB_UID, "pod_uid": pod.uid, "stage": stage, **fields})


def failed_report(pod: Pod, stage: Stage, code: FailureCode, **args: str) -> Report:
    """The last word of a pod that failed."""
    return report_for(pod, stage, finished=True, failure=Failure(code=code, args=args))


def heard(report: Report) -> dict[str, Heard]:
    """The reports of an Observed that holds this one."""
    return {report.pod_uid or "": Heard(report, NOW_TEXT)}


def make_progress(step: int, total: int = 20) -> Progress:
    """Step of total."""
    return Progress(display=f"{step}/{total}", step=step, total_steps=total, percentage=100 * step // total)


def make_recovery(step: int) -> Recovery:
    """A state saved at `step`."""
    return Recovery(step=step, time=NOW_TEXT)


def make_checkpoint(step: int, kind: CheckpointType = CheckpointType.FINAL, job: str = "tune") -> Checkpoint:
    """A published checkpoint."""
    return Checkpoint(
        name=f"{job}:{step}",
        step=step,
        type=kind,
        uri=f"pvc://finetune-models/out/team/{job}/checkpoints/step-{step}",
        time=NOW_TEXT,
        size_bytes=1,
        sha256="ab" * 32,
    )


def conditions(*which: Condition) -> dict[str, tuple[str, str]]:
    """Type to (status, reason): what most assertions are about."""
    return {c.type: (c.status.value, c.reason) for c in which}
