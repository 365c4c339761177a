"""Others write the same objects: what a second manager has applied stays, and the operator owns the status alone."""

from __future__ import annotations

import json
from typing import Any

from manifests import job
from world import World, script

MINE, THEIRS = "gitops", "cost-report"


def _apply(world: World, manager: str, manifest: dict[str, Any]) -> dict[str, Any]:
    """Server-side apply, without force."""
    path = f"{world.jobs}/{manifest['metadata']['name']}?fieldManager={manager}"
    return world.api.request("PATCH", path, json.dumps(manifest), "application/apply-patch+yaml").must()


def _owned(found: dict[str, Any], manager: str) -> dict[str, Any]:
    """The top-level fields that a manager owns, each with what it owns below."""
    entries = [e["fieldsV1"] for e in found["metadata"]["managedFields"] if e["manager"] == manager]
    return {key: value for entry in entries for key, value in entry.items()}


def test_each_manager_keeps_its_fields(world) -> None:
    mine = job("shared")
    world.kubelet.scripts[world.namespace, "shared"] = script("shared")
    _apply(world, MINE, mine)
    label = {"metadata": {"name": "shared", "labels": {"cost-centre": "42"}}}
    _apply(world, THEIRS, {"apiVersion": mine["apiVersion"], "kind": mine["kind"], **label})
    world.wait("shared", "Complete", seconds=60)
    found = world.get("shared")
    assert found["metadata"]["labels"] == {"cost-centre": "42"}
    assert "f:spec" in _owned(found, MINE)
    assert set(_owned(found, THEIRS)) == {"f:metadata"}
    assert set(_owned(found, "finetune-operator")) == {"f:status"}
    assert not {"annotations", "finalizers"} & set(found["metadata"])


def test_applying_again_changes_nothing_and_starts_nothing(world) -> None:
    mine = job("again")
    world.kubelet.scripts[world.namespace, "again"] = script("again")
    _apply(world, MINE, mine)
    world.wait("again", "Complete", seconds=60)
    before = world.get("again")["metadata"]
    after = _apply(world, MINE, mine)["metadata"]
    assert (after["resourceVersion"], after["generation"]) == (before["resourceVersion"], before["generation"])
    assert set(world.children("again")) == {"again-prepare", "again-train"}
