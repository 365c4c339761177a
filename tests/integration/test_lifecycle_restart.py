"""The operator is killed in the middle of whatever it does: each job completes, and no child is made twice."""

from __future__ import annotations

import random
import time
from typing import Any

import pytest

from kubelet import wait_for
from manifests import runtime
from world import World

RUNTIMES = "/apis/finetune.dev/v1alpha1/finetuneruntimes"


def _running(world: World, stage: str) -> bool:
    return any(pod["status"].get("phase") == "Running" for pod in world.pods(stage))


def _ended(world: World, stage: str) -> bool:
    return any(pod["status"].get("phase") == "Succeeded" for pod in world.pods(stage))


MOMENTS: dict[str, Any] = {
    "applied": lambda world: True,
    "prepare job made": lambda world: "killed-prepare" in world.children("killed"),
    "prepare ended": lambda world: _ended(world, "prepare"),
    "data ready": lambda world: world.condition("killed", "DataReady").get("status") == "True",
    "train runs": lambda world: _running(world, "train"),
    "train ended": lambda world: _ended(world, "train"),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_at_a_moment(world, moment) -> None:
    version = world.version()
    world.apply("killed")
    wait_for(lambda: MOMENTS[moment](world), moment)
    world.operator.restart()
    world.wait("killed", "Complete", reason="Succeeded", seconds=60)
    assert world.made_since(version) == {"killed-prepare": 1, "killed-train": 1}
    status = world.status("killed")
    assert (status["restarts"], status["disruptions"]) == (0, 0)
    assert [a["exitCode"] for a in status["attempts"]] == [0, 0]


def test_killed_ten_times_at_random(world) -> None:
    version, chance = world.version(), random.Random(7)
    names = [f"job-{number}" for number in range(4)]
    for name in names:
        world.apply(name)
    for _ in range(10):
        time.sleep(chance.uniform(0.2, 2.0))
        world.operator.restart()
    for name in names:
        world.wait(name, "Complete", seconds=90)
    assert world.made_since(version) == {f"{name}-{stage}": 1 for name in names for stage in ("prepare", "train")}


def test_a_job_that_ends_while_nobody_looks(world) -> None:
    """The operator is away when the training pod ends: it reads the last word when it comes back."""
    world.apply("alone")
    wait_for(lambda: _running(world, "train"), "the training pod")
    world.operator.kill()
    try:
        wait_for(lambda: _ended(world, "train"), "its end")
    finally:
        world.operator.start()
    world.wait("alone", "Complete", reason="Succeeded")
    assert [c["name"] for c in world.status("alone")["checkpoints"]], "from the last word"


def test_the_default_runtime_is_made_only_where_there_is_none(world) -> None:
    where = f"{RUNTIMES}/default"
    made = world.api.get(where).must()
    assert made["spec"]["default"] is True
    assert made["spec"]["image"] == "trainer:1"
    world.api.patch(where, {"spec": {"terminationGracePeriodSeconds": 77}}).must()
    world.operator.restart()
    world.apply("first")
    world.wait("first", "Accepted")
    assert world.api.get(where).must()["spec"]["terminationGracePeriodSeconds"] == 77, "it is the user's"
    world.api.post(RUNTIMES, runtime("other", default=True, defaults=made["spec"]["defaults"])).must()
    world.api.delete(where).must()
    try:
        world.operator.restart()
        world.apply("second")
        world.wait("second", "Accepted")
        assert world.api.get(where).status == 404
    finally:
        world.api.delete(f"{RUNTIMES}/other").must()
        world.operator.restart()
        wait_for(lambda: world.api.get(where).ok, "the default runtime")
