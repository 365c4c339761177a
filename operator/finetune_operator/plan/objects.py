"""The children of a FineTuneJob as manifests: one Job per stage, made once and never applied again."""

from __future__ import annotations

from finetune_api import names
from finetune_api.job import FineTuneJob
from finetune_api.runtime import RuntimeSpec
from finetune_api.trainer import NOT_RETRIED, ExitCode, Stage, TrainerConfig
from finetune_operator.plan.pod import CONTAINER, pod_template
from finetune_operator.plan.size import size_of
from finetune_operator.plan.state import Manifest

FREE_EXITS = (int(ExitCode.STOPPED), int(ExitCode.PEER_LOST))
"""Exit codes that are retried without counting: the trainer was asked to stop, or lost a peer that was."""


def child_name(job: FineTuneJob, stage: Stage) -> str:
    """The name of the Job of `stage`: deterministic, so that no child is ever made twice."""
    name = names.prepare_job_name if stage is Stage.PREPARE else names.train_job_name
    return name(job.metadata.name)


def labels_of(job: FineTuneJob, stage: Stage) -> dict[str, str]:
    """The labels of a child and of its pods."""
    return {
        names.MANAGED_BY_LABEL: names.MANAGED_BY,
        names.JOB_NAME_LABEL: job.metadata.name,
        names.JOB_UID_LABEL: job.metadata.uid or "",
        names.STAGE_LABEL: stage.value.lower(),
    }


def child_manifest(job: FineTuneJob, stage: Stage, runtime: RuntimeSpec, config: TrainerConfig) -> Manifest:
    """The batch/v1 Job of `stage`."""
    labels = labels_of(job, stage)
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": child_name(job, stage),
            "namespace": job.metadata.namespace,
            "labels": labels,
            "ownerReferences": [owner_reference(job)],
        },
        "spec": {
            **_pods(nodes_of(job, stage, runtime)),
            "backoffLimit": (job.spec.backoff_limit + 1) * nodes_of(job, stage, runtime) - 1,
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": {"rules": failure_rules()},
            "template": pod_template(job, stage, runtime, config, labels),
        },
    }


def nodes_of(job: FineTuneJob, stage: Stage, runtime: RuntimeSpec) -> int:
    """Pods that work at the same time in `stage`: data is prepared by one."""
    return size_of(job, runtime).nodes if stage is Stage.TRAIN else 1


def _pods(nodes: int) -> Manifest:
    """How many pods, and when they are done: several have an index each, and the one of index 0 publishes the result,
    so that its end decides; without that, a peer lost after it would be made again and wait for it in vain."""
    pods: Manifest = {"completions": nodes, "parallelism": nodes}
    if nodes == 1:
        return pods
    return {**pods, "completionMode": "Indexed", "successPolicy": {"rules": [{"succeededIndexes": "0"}]}}


def owner_reference(job: FineTuneJob) -> Manifest:
    """Makes `job` the controller of a child: the garbage collector removes the child with it."""
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.JOB_KIND,
        "name": job.metadata.name,
        "uid": job.metadata.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }


def failure_rules() -> list[Manifest]:
    """Disruptions and stops are free, what only the user can mend is final, everything else counts."""
    return [
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        {"action": "Ignore", "onExitCodes": _exits(FREE_EXITS)},
        {"action": "FailJob", "onExitCodes": _exits(NOT_RETRIED)},
    ]


def _exits(codes: tuple[int, ...] | range) -> Manifest:
    return {"containerName": CONTAINER, "operator": "In", "values": list(codes)}
