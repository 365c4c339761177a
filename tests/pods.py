"""The Job of a stage as the operator makes it, and the pod in it, for tests of the manifests."""

from __future__ import annotations

from typing import Any

from builders import NOW_TEXT, make_job, make_runtime
from finetune_api.job import FineTuneJob
from finetune_api.status import JobStatus, Resolved, ResolvedModel, ResolvedRuntime
from finetune_api.trainer import Stage
from finetune_operator.plan.objects import child_manifest
from finetune_operator.plan.trainer_config import trainer_config


def child(stage: Stage = Stage.TRAIN, *, runtime: dict[str, Any] | None = None, **spec: Any) -> dict[str, Any]:
    """The Job of `stage` for a started job."""
    job, found = make_job(**spec), make_runtime(**(runtime or {}))
    resolved = Resolved(
        runtime=ResolvedRuntime(name="gpu", generation=1, spec=found.spec.to_json()),
        model=ResolvedModel(source="pvc://finetune-weights/tiny"),
        lora_rank=16,
    )
    started: FineTuneJob = job.model_copy(update={"status": JobStatus(start_time=NOW_TEXT, resolved=resolved)})
    config = trainer_config(started, found.spec, resolved, "team/tiny-6f1c2b3a")
    return child_manifest(started, stage, found.spec, config)


def pod_of(manifest: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(pod spec, its only container)."""
    spec = manifest["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    return spec, container
