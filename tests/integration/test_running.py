"""The operator in daily life: it ends when asked without losing anything, and tells of a job only what is new."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from typing import Any

from kubelet import Behaviour, wait_for
from manifests import ROOT
from world import World, progress, published, script


def events(world: World, name: str) -> list[dict[str, Any]]:
    """The events of a FineTuneJob, oldest first."""
    listed = world.api.get(f"/api/v1/namespaces/{world.namespace}/events").must()["items"]
    return [e for e in listed if (e["involvedObject"]["kind"], e["involvedObject"]["name"]) == ("FineTuneJob", name)]


def _beginnings(world: World) -> int:
    return world.operator.log.read_text().count("Initial authentication has finished")


def test_asked_to_end_again_and_again(world) -> None:
    """SIGTERM in the middle of whatever it does: exit 0 each time, soon, and every job ends as if nothing had been."""
    version, chance = world.version(), random.Random(5)
    names = [f"job-{number}" for number in range(4)]
    for name in names:
        world.apply(name)
    longest = 0.0
    for _ in range(3):
        time.sleep(chance.uniform(0.5, 2.0))
        begun = time.monotonic()
        assert world.operator.stop() == 0
        longest = max(longest, time.monotonic() - begun)
        begun_before = _beginnings(world)
        world.operator.start()
        wait_for(lambda: _beginnings(world) > begun_before, "the operator")  # noqa: B023 - called at once
    for name in names:
        world.wait(name, "Complete", reason="Succeeded", seconds=90)
    print(f"the longest end took {longest:.1f} s")
    assert longest < 10
    assert world.made_since(version) == {f"{name}-{stage}": 1 for name in names for stage in ("prepare", "train")}
    assert "broken off" not in world.operator.log.read_text()


def test_an_event_tells_of_a_change_and_of_each_once(world) -> None:
    world.apply("told")
    world.wait("told", "Complete")
    wait_for(lambda: any(e["reason"] == "Succeeded" for e in events(world, "told")), "the last event")
    told = events(world, "told")
    said = Counter((event["reason"], event["message"]) for event in told)
    assert set(said.values()) == {1}, said
    assert {"Accepted", "DataReady", "Running", "Succeeded"} <= {event["reason"] for event in told}
    assert {event["type"] for event in told} <= {"Normal", "Warning"}
    world.operator.restart()
    world.apply("later")
    world.wait("later", "Complete")
    assert len(events(world, "told")) == len(told), "a restart tells nothing anew"


def test_a_job_that_waits_is_told_of_once(world) -> None:
    """Looked at again and again while its claim is missing, it gets one event, and one more when that is over."""
    world.apply("waits", trainingFile="pvc://finetune-late/train.jsonl")
    world.wait("waits", "Accepted", "False", reason="ClaimNotFound")
    looked = time.monotonic()
    wait_for(lambda: time.monotonic() - looked > 2.5, "several looks and resyncs")
    refused = [event for event in events(world, "waits") if event["reason"] == "ClaimNotFound"]
    assert len(refused) == 1
    world.claim("finetune-late")
    world.wait("waits", "Complete")
    assert len([event for event in events(world, "waits") if event["reason"] == "Accepted"]) == 1


def test_nothing_is_written_while_nothing_changes(world) -> None:
    """Polled, looked at and listed again and again: a job that waits, one that trains on the spot, one that is over."""
    over = threading.Event()
    standing = Behaviour((progress(2),), until=over, word=published("stands"))
    world.apply("waits", trainingFile="pvc://finetune-late/train.jsonl")
    world.apply("stands", script("stands", train=[standing]))
    world.apply("done")
    world.wait("waits", "Accepted", "False", reason="ClaimNotFound")
    world.wait("done", "Complete")
    wait_for(lambda: world.status("stands").get("progress", {}).get("step") == 2, "its progress")

    def versions() -> list[str]:
        return [world.get(name)["metadata"]["resourceVersion"] for name in ("waits", "stands", "done")]

    def quiet() -> bool:
        before = versions()
        time.sleep(3.0)  # ten polls and three resyncs
        return versions() == before

    wait_for(quiet, "three seconds without a write", 30)
    over.set()
    world.wait("stands", "Complete")


def test_the_first_job_needs_nothing_but_its_file(plane, api, operator, kubelet, namespace) -> None:
    """On a fresh cluster: the runtime is the one that the operator has made, all else is in the example."""
    world = World(plane, api, kubelet, operator, namespace)
    kubelet.scripts[namespace, "first-job"] = script("first-job")
    plane.kubectl("apply", "--namespace", namespace, "--filename", str(ROOT / "examples" / "first-job.yaml"))
    world.wait("first-job", "Complete", reason="Succeeded", seconds=60)
    told = plane.kubectl("describe", "ftj", "first-job", "--namespace", namespace)
    assert "pvc://finetune-outputs" in told
    assert "Succeeded" in told
