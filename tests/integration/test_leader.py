"""Several operators, of which one works: through kills, stops and pauses, never two at the same time."""

from __future__ import annotations

import contextlib
import json
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from kubelet import Behaviour, Kubelet, wait_for
from releases import Release, asked, metric
from world import PREPARED, OperatorProcess, World, script

ELECTION = {"enabled": True, "leaseDurationSeconds": 6, "renewDeadlineSeconds": 4, "retryPeriodSeconds": 0.5}
LEASE = "/apis/coordination.k8s.io/v1/namespaces/finetune-system/leases/finetune-operator"
AT_WORK = "finetune_operator_leader"


@dataclass
class Witness(threading.Thread):
    """Asks all operators again and again who works."""

    urls: list[str]
    most: int = 0
    over: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        super().__init__(daemon=True)

    def __hash__(self) -> int:
        return id(self)

    def run(self) -> None:
        while not self.over.wait(0.03):
            self.most = max(self.most, sum(metric(url, AT_WORK) == 1.0 for url in self.urls))


@pytest.fixture
def release(own_plane, tmp_path) -> Iterator[Release]:
    """The chart with an election, in a cluster of its own."""
    made = Release(own_plane, tmp_path, values={"replicas": 2, "leaderElection": ELECTION})
    made.install()
    own_plane.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=60s")
    yield made
    made.helm("uninstall", made.name)


@contextlib.contextmanager
def started(*operators: OperatorProcess) -> Iterator[None]:
    """Whatever runs of them at the end is ended."""
    try:
        yield
    finally:
        for each in operators:
            if each.process is not None:
                each.process.send_signal(signal.SIGCONT)
                each.process.kill()
                each.process.wait()


def taken_over(operator: OperatorProcess, since: float) -> float:
    """Seconds until it works."""
    operator.wait_for_log("took Lease")
    return time.monotonic() - since


@pytest.fixture
def witness() -> Iterator[Witness]:
    """Sees to it that never two work."""
    made = Witness([])
    made.start()
    yield made
    made.over.set()
    made.join()
    assert made.most == 1


@pytest.fixture
def kubelet(own_plane) -> Iterator[Kubelet]:
    """Runs the pods."""
    with Kubelet(own_plane.api()) as running:
        yield running


def test_another_takes_over(release, own_plane, own_namespace, witness, kubelet) -> None:
    api = own_plane.api()
    (first, first_url), (second, second_url) = release.operator("first", log_format="json"), release.operator("second")
    third, third_url = release.operator("third")
    witness.urls += [first_url, second_url, third_url]
    with contextlib.closing(api), started(first, second, third):
        first.start()
        first.wait_for_log("made FineTuneRuntime default")
        second.start()
        second.wait_for_log("standing by")
        wait_for(lambda: asked(f"{second_url}/healthz")[0] == 200, "a healthy one that stands by")
        assert (metric(first_url, AT_WORK), metric(second_url, AT_WORK)) == (1, 0)
        world = World(own_plane, api, kubelet, first, own_namespace)
        world.prepare()
        version = world.version()
        world.apply("handed-on", script("handed-on", prepare=Behaviour((PREPARED,), seconds=2)))
        wait_for(lambda: "handed-on-prepare" in world.children("handed-on"), "the prepare Job")

        first.kill()
        killed = taken_over(second, time.monotonic())
        world.wait("handed-on", "Complete", seconds=60)
        assert world.made_since(version) == {"handed-on-prepare": 1, "handed-on-train": 1}

        third.start()
        third.wait_for_log("standing by")
        asked_to_end = time.monotonic()
        assert second.stop() == 0
        ended = time.monotonic() - asked_to_end
        handed = taken_over(third, asked_to_end)
        assert api.get(LEASE).must()["spec"]["leaseTransitions"] == 3
    print(f"takeover: {killed:.1f} s after a kill, {handed:.1f} s after SIGTERM (which took {ended:.1f} s)")
    assert killed < ELECTION["leaseDurationSeconds"] + 4
    lines = [json.loads(line) for line in first.log.read_text().splitlines()]
    assert {"message", "severity", "timestamp"} <= set.intersection(*(set(line) for line in lines))


def test_who_was_paused_for_too_long_ends_when_it_wakes(release, own_plane, witness) -> None:
    (paused, paused_url), (other, other_url) = release.operator("paused"), release.operator("other")
    witness.urls += [paused_url, other_url]
    with started(paused, other):
        paused.start()
        paused.wait_for_log("took Lease")
        wait_for(lambda: metric(paused_url, AT_WORK) == 1, "one that works")
        other.start()
        other.wait_for_log("standing by")
        process = paused.process
        assert process is not None
        process.send_signal(signal.SIGSTOP)
        other.wait_for_log("took Lease")
        process.send_signal(signal.SIGCONT)
        assert process.wait(timeout=10) == 1
        assert "the lease is lost" in paused.log.read_text()
        assert other.stop() == 0
    api = own_plane.api()
    assert api.get(LEASE).must()["spec"]["holderIdentity"] == "", "given back"
    api.close()


def test_who_stands_by_ends_at_once_when_asked(release) -> None:
    (first, _), (second, _) = release.operator("worker"), release.operator("waiter")
    with started(first, second):
        first.start()
        first.wait_for_log("took Lease")
        second.start()
        second.wait_for_log("standing by")
        begun = time.monotonic()
        assert second.stop() == 0
        assert time.monotonic() - begun < 3
        assert first.stop() == 0
