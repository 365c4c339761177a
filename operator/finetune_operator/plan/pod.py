"""The pod of a stage: the platform's template underneath, the security settings and the trainer on top.

Meets the Pod Security Standard "restricted". What the runtime adds can never replace what is fixed here.
"""

from __future__ import annotations

import json
from typing import Any

from finetune_api import names
from finetune_api.job import FineTuneJob
from finetune_api.runtime import PodTemplate, RuntimeSpec
from finetune_api.trainer import Stage, TrainerConfig
from finetune_operator.plan import torchrun
from finetune_operator.plan.secrets import secret_environment
from finetune_operator.plan.size import Size, size_of
from finetune_operator.plan.state import Manifest
from finetune_operator.plan.volumes import cache_folder, volumes_of

CONTAINER = "trainer"


def pod_template(
    job: FineTuneJob, stage: Stage, runtime: RuntimeSpec, config: TrainerConfig, labels: dict[str, str]
) -> Manifest:
    """The pod template of `stage`; the configuration travels in its annotation."""
    platform = runtime.pod_template
    text = json.dumps(config.to_json(), separators=(",", ":"), ensure_ascii=False)
    size = size_of(job, runtime)
    several = stage is Stage.TRAIN and size.nodes > 1
    environment = [*secret_environment(job), *(torchrun.environment(job, size) if several else ())]
    spec = _pod_spec(stage, runtime, config, size, environment)
    return {
        "metadata": {
            "labels": {**platform.labels, **labels},
            "annotations": {**platform.annotations, names.CONFIG_ANNOTATION: text},
        },
        "spec": {"subdomain": torchrun.subdomain(job), **spec} if several else spec,
    }


def _pod_spec(stage: Stage, runtime: RuntimeSpec, config: TrainerConfig, size: Size, more: list[Manifest]) -> Manifest:
    platform = runtime.pod_template
    cache = runtime.cache.uri if runtime.cache else None
    volumes, mounts = volumes_of(config, cache, stage)
    hub = [{"name": "HF_HUB_CACHE", "value": cache_folder(cache, config)}] if cache else []
    return {
        **_placement(platform),
        **({"imagePullSecrets": [s.to_json() for s in secrets]} if (secrets := runtime.image_pull_secrets) else {}),
        "restartPolicy": "Never",
        "serviceAccountName": runtime.service_account_name,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": runtime.termination_grace_period_seconds,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": names.USER_ID,
            "runAsGroup": names.USER_ID,
            "fsGroup": names.USER_ID,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "volumes": [*platform.volumes, *volumes],
        "containers": [_container(stage, runtime, size, mounts, [*hub, *more])],
    }


def _placement(platform: PodTemplate) -> dict[str, Any]:
    """Where the platform team wants the pods; absent values stay absent."""
    placement: dict[str, Any] = {
        "nodeSelector": platform.node_selector,
        "tolerations": list(platform.tolerations),
        "affinity": platform.affinity,
        "priorityClassName": platform.priority_class_name,
        "schedulerName": platform.scheduler_name,
        "runtimeClassName": platform.runtime_class_name,
    }
    return {key: value for key, value in placement.items() if value}


def _container(
    stage: Stage, runtime: RuntimeSpec, size: Size, mounts: list[Manifest], more: list[Manifest]
) -> Manifest:
    platform = runtime.pod_template
    program = stage.value.lower()
    return {
        "name": CONTAINER,
        "image": runtime.image,
        "args": [program, f"{names.CONFIG_DIRECTORY}/{names.CONFIG_FILE}"],
        "env": _environment(platform, runtime.offline, more),
        **({"envFrom": list(platform.env_from)} if platform.env_from else {}),
        "ports": [{"name": "progress", "containerPort": names.PROGRESS_PORT}],
        "resources": _resources(size, {runtime.gpu_resource_name: size.gpus} if stage is Stage.TRAIN else {}),
        "volumeMounts": [*platform.volume_mounts, *mounts],
        "terminationMessagePath": names.TERMINATION_LOG,
        "terminationMessagePolicy": "File",
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "runAsNonRoot": True,
            "capabilities": {"drop": ["ALL"]},
        },
    }


def _resources(size: Size, devices: dict[str, int]) -> Manifest:
    """Memory is requested and limited alike; CPU is requested only, so that what is idle is not denied to a pod."""
    memory, gpus = {"memory": str(size.memory)}, {name: str(count) for name, count in devices.items() if count}
    return {"requests": {"cpu": str(size.cpu), **memory, **gpus}, "limits": {**memory, **gpus}}


def _environment(platform: PodTemplate, offline: bool, more: list[Manifest]) -> list[Manifest]:
    """The platform's variables, then ours, which win: the root is read-only and the user has no entry in passwd.

    Args:
        more: those of this job alone, Secrets among them.
    """
    home = names.HOME_DIRECTORY
    fixed: dict[str, str] = {
        "HOME": home,
        "USER": "finetune",
        "TMPDIR": "/tmp",
        "HF_HOME": f"{home}/huggingface",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TORCHINDUCTOR_CACHE_DIR": f"{home}/inductor",
        "TRITON_CACHE_DIR": f"{home}/triton",
        "MPLCONFIGDIR": f"{home}/matplotlib",
        "PYTHONUNBUFFERED": "1",
        **({"HF_HUB_OFFLINE": "1"} if offline else {}),
    }
    pod_uid = {"name": names.POD_UID_ENV, "valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}}}
    # As many threads as it asks for CPUs (rounded up), not as its node has: pods that share a node would hinder each
    # other tenfold, and a sum over other threads differs in its last bits, so that a resumed run would differ too.
    requested = {"containerName": CONTAINER, "resource": "requests.cpu"}
    threads = {"name": "OMP_NUM_THREADS", "valueFrom": {"resourceFieldRef": requested}}
    ours: list[Manifest] = [*({"name": name, "value": value} for name, value in fixed.items()), pod_uid, threads, *more]
    taken = {entry["name"] for entry in ours}
    return [*(entry for entry in platform.env if entry.get("name") not in taken), *ours]
