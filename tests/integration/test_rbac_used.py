"""Each right of the operator is needed: it is in the API server's audit log of whole lives, or missed when gone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from apiserver import AUDIT_LOG, Api
from finetune_api import names
from finetune_operator.rbac import BY_DEFAULT, permissions
from kubelet import Behaviour, wait_for
from manifests import job, runtime
from users import granted_everywhere, user
from world import World, script, well

ACCOUNT = "system:serviceaccount:finetune-system:finetune-operator"
RUNTIMES = "/apis/finetune.dev/v1alpha1/finetuneruntimes"
Right = tuple[str, str, str]
"""Group, resource (with its subresource), verb."""
NOT_A_REQUEST = {(names.GROUP, f"{names.JOB_PLURAL}/finalizers", "update")}
"""Asked for by an admission plugin on behalf of another request."""


def granted() -> set[Right]:
    """Every right that the chart grants without any value."""
    return {(p.group, resource, verb) for p in permissions(*BY_DEFAULT) for resource in p.resources for verb in p.verbs}


def requested(folder: Path) -> dict[Right, list[int]]:
    """Status codes of what the operator has asked for since the control plane came up."""
    found: dict[Right, list[int]] = {}
    for line in (folder / AUDIT_LOG).read_text().splitlines():
        entry: dict[str, Any] = json.loads(line)
        what = entry.get("objectRef")
        # Tests use the operator's account too: by hand, which names no user agent, or by kubectl.
        itself = not entry.get("userAgent", "").startswith("kubectl") and entry.get("userAgent")
        if entry["user"]["username"] == ACCOUNT and what is not None and itself:
            name = "/".join(part for part in (what["resource"], what.get("subresource")) if part)
            right = (what.get("apiGroup", ""), name, entry["verb"])
            found.setdefault(right, []).append(entry.get("responseStatus", {}).get("code", 0))
    return found


def live(world: World) -> None:
    """Lives of jobs in which everything happens that the operator does."""
    config_map = {"metadata": {"name": "finetune-rows"}, "data": {"train.jsonl": "{}"}}
    world.api.post(f"/api/v1/namespaces/{world.namespace}/configmaps", config_map).must()
    world.apply("first", trainingFile="configmap://finetune-rows/train.jsonl")
    world.wait("first", "Complete", seconds=60)
    world.apply("short", ttlSecondsAfterFinished=0)
    wait_for(lambda: not world.api.get(f"{world.jobs}/short").ok, "the end of its time", 60)
    many = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}
    claims = f"/api/v1/namespaces/{world.namespace}/persistentvolumeclaims"
    world.api.post(claims, {"metadata": {"name": "finetune-many"}, "spec": many}).must()
    where = {"trainingFile": "pvc://finetune-many/train.jsonl", "output": {"uri": "pvc://finetune-many/out"}}
    # Not the runtime of a fresh cluster, which takes one node.
    world.api.post(RUNTIMES, runtime(world.namespace, limits={"maxNodes": 2})).must()
    world.apply("several", runtime=world.namespace, resources={"nodes": 2}, **where)
    service = f"/api/v1/namespaces/{world.namespace}/services/several-train"
    wait_for(lambda: world.api.get(service).ok, "the Service of a job on several nodes", 60)
    world.api.delete(f"{RUNTIMES}/{world.namespace}")
    stopping = script("stopped", train=[Behaviour(well("stopped").reports, seconds=60)])
    world.apply("stopped", stopping)
    world.wait("stopped", "Running", seconds=60)
    world.api.patch(f"{world.jobs}/stopped", {"spec": {"cancel": True}}).must()
    world.wait("stopped", "Failed", reason="Cancelled", seconds=60)


def test_every_right_is_used_and_nothing_else_is_asked_for(world) -> None:
    live(world)
    unused = granted() - NOT_A_REQUEST - requested(world.plane.folder).keys()
    assert unused == set()
    allowed = {right for right, codes in requested(world.plane.folder).items() if set(codes) != {403}}
    assert allowed - granted() == set()


@pytest.fixture
def almost(plane, api, operator_account, namespace) -> Iterator[Api]:
    """Somebody with all rights of the operator but one that no request shows."""
    rules: list[dict[str, object]] = [
        p.rule()
        for p in permissions(*BY_DEFAULT)
        if not {(p.group, resource, verb) for resource in p.resources for verb in p.verbs} & NOT_A_REQUEST
    ]
    with (
        user(plane, namespace, "almost") as connection,
        granted_everywhere(api, "almost-the-operator", (namespace, "almost"), rules),
    ):
        yield connection


def test_without_the_right_on_finalizers_no_child_can_be_made(almost, api, namespace) -> None:
    owner = api.post(f"/apis/{names.API_VERSION}/namespaces/{namespace}/finetunejobs", job("owner")).must()
    reference = {"apiVersion": names.API_VERSION, "kind": names.JOB_KIND, "name": "owner", "controller": True}
    reference |= {"uid": owner["metadata"]["uid"], "blockOwnerDeletion": True}
    container = {"name": "a", "image": "a"}
    child = {
        "metadata": {"name": "child", "ownerReferences": [reference]},
        "spec": {"template": {"spec": {"restartPolicy": "Never", "containers": [container]}}},
    }
    jobs = f"/apis/batch/v1/namespaces/{namespace}/jobs?dryRun=All"
    wait_for(lambda: "finalizers" in almost.post(jobs, child).message, "the refusal")
    reference["blockOwnerDeletion"] = False
    assert almost.post(jobs, child).ok
