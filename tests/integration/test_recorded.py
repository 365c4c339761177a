"""A pod stays until its end stands in the status; what stands there is true, whatever becomes of pod and operator."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import pytest

from finetune_api.failures import Failure, FailureCode
from kubelet import Behaviour, wait_for
from world import PREPARED, World, script, well

AT_ONCE = threading.Event()
AT_ONCE.set()


def _there(world: World, name: str) -> Any:
    return [pod for pod in world.pods("train") if pod["metadata"]["name"].startswith(f"{name}-")]


def _delete(world: World, pod: dict[str, Any]) -> None:
    world.api.delete(world.path("pods", pod["metadata"]["name"])).must()
    wait_for(lambda: world.found("pods", pod["metadata"]["name"]) is None, "the end of its pod")


def _over(world: World, name: str) -> bool:
    found = world.found("jobs", name) or {}
    return any(c["type"] in ("Complete", "Failed") for c in found["status"].get("conditions", ()))


def test_both_stages_end_when_their_reports_are_recorded(world) -> None:
    """Neither pod would end otherwise."""
    prepare = Behaviour((PREPARED,), seconds=0.2, leaves=AT_ONCE, word=PREPARED)
    world.apply("stays", script("stays", prepare=prepare, train=[replace(well("stays"), leaves=AT_ONCE)]))
    world.wait("stays", "Complete", reason="Succeeded")
    assert [a["reason"] for a in world.status("stays")["attempts"]] == ["Succeeded", "Succeeded"]


def test_an_end_that_is_not_recorded_when_its_pod_is_deleted_is_told_by_the_next(world) -> None:
    world.apply("unheard", script("unheard", train=[replace(well("unheard"), leaves=AT_ONCE)]))
    world.wait("unheard", "Running")
    world.operator.kill()
    try:
        (first,) = _there(world, "unheard")
        assert world.kubelet.told(first["metadata"]["uid"]).finished.wait(30)
        _delete(world, first)
        wait_for(lambda: _there(world, "unheard"), "the next pod")
    finally:
        world.operator.start()
    world.wait("unheard", "Complete", reason="Succeeded")
    status = world.status("unheard")
    assert [c["name"] for c in status["checkpoints"]] == ["unheard:4"]
    assert (status["restarts"], status["disruptions"]) == (0, 1)


DIVERGED = Failure(code=FailureCode.DIVERGED, args={"step": "4", "learningRate": "1"})
ENDS = {
    "well": (None, "Succeeded", "Complete", "Succeeded"),
    "badly": (DIVERGED, "Diverged", "Failed", "Diverged"),
}


@pytest.mark.parametrize("how", ENDS)
def test_an_end_that_is_recorded_stands_though_nobody_sees_it(world, how) -> None:
    """The pod is told so, ends, and is deleted while the operator is away."""
    failure, last, kind, reason = ENDS[how]
    leaves = threading.Event()
    world.apply("kept", script("kept", train=[replace(well("kept"), leaves=leaves, failure=failure)]))
    world.wait("kept", "DataReady")
    (pod,) = wait_for(lambda: _there(world, "kept"), "the training pod")
    assert world.kubelet.told(pod["metadata"]["uid"]).recorded.wait(30)
    world.operator.kill()
    told = world.status("kept")["attempts"][-1]
    try:
        leaves.set()
        wait_for(lambda: world.found("pods", pod["metadata"]["name"])["status"]["phase"] != "Running", "its end")
        _delete(world, pod)
        wait_for(lambda: _over(world, "kept-train"), "the end of its Job")
    finally:
        leaves.set()
        world.operator.start()
    final = world.wait("kept", kind, reason=reason)
    status = world.status("kept")
    assert final["message"] == (told["message"] if failure else world.condition("kept", "Published")["message"])
    assert [c["name"] for c in status["checkpoints"]] == ["kept:4"]
    assert (status["restarts"], status["disruptions"]) == (0, 0)
    assert [(a["reason"], a.get("exitCode")) for a in status["attempts"]] == [("Succeeded", 0), (last, None)]
