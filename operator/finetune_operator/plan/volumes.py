"""The volumes of a pod: claims and config maps of the configuration, and room to write beside a read-only root."""

from __future__ import annotations

from dataclasses import dataclass, field

from finetune_api import names
from finetune_api.trainer import Stage, TrainerConfig
from finetune_api.uris import parse_uri
from finetune_operator.plan.state import Manifest

SHARED_MEMORY = "64Mi"
"""Size of /dev/shm; the kernel charges what is used of it to the container's memory."""
SCRATCH = {"finetune-tmp": "/tmp", "finetune-home": names.HOME_DIRECTORY}


@dataclass
class _Wanted:
    writable: dict[str, bool] = field(default_factory=dict)
    keys: dict[str, list[str]] = field(default_factory=dict)


def mounts_of(*uris: str | None) -> dict[str, str]:
    """Folder of each volume that `uris` name: `pvc://claim` or `configmap://name` to a path in the pod."""
    roots = {"pvc": names.CLAIM_MOUNT_ROOT, "configmap": names.CONFIG_MAP_MOUNT_ROOT}
    parts = [parse_uri(uri) for uri in uris if uri and "://" in uri]
    return {p.volume: f"{roots[p.scheme]}/{p.root}" for p in parts if p.scheme in roots}


def cache_folder(cache: str, config: TrainerConfig) -> str:
    """The folder in the pod of the runtime's cache, a `pvc://` URI."""
    parts = parse_uri(cache)
    return f"{config.mounts[parts.volume]}/{parts.path}".rstrip("/")


def volumes_of(config: TrainerConfig, cache: str | None, stage: Stage) -> tuple[list[Manifest], list[Manifest]]:
    """(volumes, volumeMounts) of a pod with this configuration. Only the output's claim can be written, and, in
    preparing, that of the runtime's cache."""
    volumes, mounts = _fixed()
    wanted = _wanted(config, ((cache, stage is Stage.PREPARE),))
    for index, (claim, writable) in enumerate(sorted(wanted.writable.items())):
        source = {"claimName": claim} if writable else {"claimName": claim, "readOnly": True}
        volumes.append({"name": f"finetune-claim-{index}", "persistentVolumeClaim": source})
        mounts.append(_mount(f"finetune-claim-{index}", config.mounts[f"pvc://{claim}"], read_only=not writable))
    for index, (name, keys) in enumerate(sorted(wanted.keys.items())):
        items = [{"key": key, "path": key} for key in sorted(set(keys))]
        volumes.append({"name": f"finetune-configmap-{index}", "configMap": {"name": name, "items": items}})
        mounts.append(_mount(f"finetune-configmap-{index}", config.mounts[f"configmap://{name}"], read_only=True))
    return volumes, mounts


def _wanted(config: TrainerConfig, more: tuple[tuple[str | None, bool], ...]) -> _Wanted:
    wanted = _Wanted()
    read = (
        config.start.model,
        config.start.same_as,
        config.start.adapter,
        config.training_file,
        config.validation_file,
    )
    for uri, writable in (*((uri, False) for uri in read), (config.output_uri, True), *more):
        if uri is None:
            continue
        parts = parse_uri(uri)
        if parts.scheme == "pvc":
            wanted.writable[parts.root] = wanted.writable.get(parts.root, False) or writable
        elif parts.scheme == "configmap":
            wanted.keys.setdefault(parts.root, []).append(parts.path)
    return wanted


def _fixed() -> tuple[list[Manifest], list[Manifest]]:
    """The configuration, scratch folders, and shared memory."""
    path = f"metadata.annotations['{names.CONFIG_ANNOTATION}']"
    item = {"path": names.CONFIG_FILE, "fieldRef": {"fieldPath": path}}
    volumes: list[Manifest] = [
        {"name": "finetune-config", "downwardAPI": {"items": [item]}},
        *({"name": name, "emptyDir": {}} for name in SCRATCH),
        {"name": "finetune-shm", "emptyDir": {"medium": "Memory", "sizeLimit": SHARED_MEMORY}},
    ]
    mounts = [
        _mount("finetune-config", names.CONFIG_DIRECTORY, read_only=True),
        *(_mount(name, path) for name, path in SCRATCH.items()),
        _mount("finetune-shm", "/dev/shm"),
    ]
    return volumes, mounts


def _mount(name: str, path: str, *, read_only: bool = False) -> Manifest:
    return {"name": name, "mountPath": path, **({"readOnly": True} if read_only else {})}
