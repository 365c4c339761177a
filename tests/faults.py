"""What may go wrong between the operator and the API server, each for a while, and how long the operator needs after.

While a fault lasts, one job that trains comes to its end and another is applied. A fault is over when both have been
told of in their statuses as if nothing had been: the time until then is the time to recover. Neither may lose anything.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import shutil
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import installed
from apiserver import ControlPlane, free_ports
from faulty import HTTP_GONE, NONE, Asked, Fault, FaultyProxy, Rule, faulty_proxy
from in_pod import OperatorInPod
from kubelet import Behaviour, Fields, Kubelet
from world import World, progress, published, script

LONGEST_RECOVERY = 120.0
EXPIRED = json.dumps({"type": "ERROR", "object": {"kind": "Status", "status": "Failure", "code": HTTP_GONE}})
BROKEN = json.dumps({"type": "ERROR", "object": {"kind": "Status", "status": "Failure", "code": 500, "message": "x"}})


@dataclass(frozen=True, slots=True)
class Recovery:
    """How a fault went by."""

    seconds: float
    """From the fault's end until both jobs were right."""
    requests: float
    """Per second, while it lasted."""


@dataclass
class Ground:
    """An operator behind a proxy, and jobs that wait for a fault."""

    world: World
    proxy: FaultyProxy
    operator: OperatorInPod
    health_port: int
    fault_seconds: float
    token: Callable[[], str]
    """Another valid token of the operator's."""
    holds: dict[str, threading.Event] = field(default_factory=dict)

    def train(self, names: list[str]) -> None:
        """Bring a job for each fault to where it trains, and hold it there."""
        for name in names:
            self.holds[name] = threading.Event()
            train = Behaviour((progress(1), progress(2)), until=self.holds[name], word=published(_busy(name)))
            self.world.apply(_busy(name), script(_busy(name), train=[train]))
        for name in names:
            self.world.wait(_busy(name), "Running", seconds=60)

    def through(self, name: str) -> Recovery:
        """One fault from its beginning until nothing is left of it."""
        with FAULTS[name](self):
            version, begun = self.world.version(), time.monotonic()
            self.holds[name].set()
            self.world.apply(_new(name))
            time.sleep(max(0.0, self.fault_seconds - (time.monotonic() - begun)))
            ended = time.monotonic()
            asked = len(self.proxy.since(begun)) / (ended - begun)
        self.world.wait(_busy(name), "Complete", reason="Succeeded", seconds=LONGEST_RECOVERY)
        self.world.wait(_new(name), "Accepted", seconds=LONGEST_RECOVERY)
        recovered = time.monotonic() - ended
        self.world.wait(_new(name), "Complete", reason="Succeeded", seconds=LONGEST_RECOVERY)
        self._nothing_lost(name, version)
        return Recovery(recovered, asked)

    def _nothing_lost(self, name: str, version: str) -> None:
        """Each Job was made once, nothing was retried, and the last word has arrived."""
        assert self.world.made_since(version) == {f"{_new(name)}-{stage}": 1 for stage in ("prepare", "train")}
        for job in (_busy(name), _new(name)):
            status = self.world.status(job)
            assert [a["exitCode"] for a in status["attempts"]] == [0, 0], job
            assert (status["restarts"], status["disruptions"]) == (0, 0), job
            assert [c["name"] for c in status["checkpoints"]] == [f"{job}:4"], job

    def problems(self) -> list[str]:
        """What /healthz says is wrong."""
        address = f"http://127.0.0.1:{self.health_port}/healthz"
        try:
            with urllib.request.urlopen(address, timeout=5) as answer:
                return list(json.load(answer)["problems"])
        except urllib.error.HTTPError as error:
            return list(json.load(error)["problems"])


@contextlib.contextmanager
def ground(
    plane: ControlPlane, namespace: str, folder: Path, settings: Fields, fault_seconds: float
) -> Iterator[Ground]:
    """An operator behind a proxy; nobody else's operator may run on this control plane."""
    (port,) = free_ports(1)
    (folder / "settings.yaml").write_text(json.dumps({**settings, "healthPort": port, "trainerImage": "trainer:1"}))
    account = folder / "service-account"
    account.mkdir()
    shutil.copy(plane.folder / "pki" / "apiserver.crt", account / "ca.crt")
    api, kubelet = plane.api(), Kubelet(plane.api())
    with faulty_proxy(plane) as proxy:
        operator = OperatorInPod(account, folder / "settings.yaml", folder / "operator.log", port=proxy.port)
        operator.renew(installed.operator_token(plane))
        operator.start()
        kubelet.start()
        world = World(plane, api, kubelet, operator, namespace)
        try:
            yield Ground(world, proxy, operator, port, fault_seconds, lambda: installed.operator_token(plane))
        finally:
            code = operator.stop()
            kubelet.stop()
            api.close()
    assert code == 0


def _busy(name: str) -> str:
    return f"busy-{name}"


def _new(name: str) -> str:
    return f"new-{name}"


@contextlib.contextmanager
def _ruled(ground: Ground, rule: Rule) -> Iterator[None]:
    """The rule holds for new requests; the watches that are open are broken off first, to meet it too."""
    with ground.proxy.doing(rule):
        ground.proxy.drop_watches()
        yield


def _answers(status: int, **headers: str) -> Callable[[Ground], contextlib.AbstractContextManager[None]]:
    """Every request is answered so."""
    fault = Fault(status=status, headers=headers)
    return lambda ground: _ruled(ground, lambda _: fault)


def _some(choose: Callable[[Asked], bool], fault: Fault) -> Callable[[Ground], contextlib.AbstractContextManager[None]]:
    """Only what `choose` takes goes wrong."""
    return lambda ground: _ruled(ground, lambda asked: fault if choose(asked) else NONE)


def _resets(ground: Ground) -> contextlib.AbstractContextManager[None]:
    """Of three requests one breaks before and one after it took effect."""
    turn = itertools.cycle((Fault(reset=True), Fault(reset_after=True), NONE))
    return _ruled(ground, lambda asked: NONE if asked.watch else next(turn))


@contextlib.contextmanager
def _dropped_watches(ground: Ground) -> Iterator[None]:
    assert ground.proxy.drop_watches() >= 4
    yield


@contextlib.contextmanager
def _stalled_watches(ground: Ground) -> Iterator[None]:
    assert ground.proxy.stall_watches() >= 4
    yield


@contextlib.contextmanager
def _restart(ground: Ground) -> Iterator[None]:
    ground.world.plane.restart_apiserver()
    yield


def _slow(ground: Ground) -> contextlib.AbstractContextManager[None]:
    return ground.proxy.doing(lambda _: Fault(delay=min(2.0, ground.fault_seconds / 4)))


@contextlib.contextmanager
def _refused_token(ground: Ground) -> Iterator[None]:
    """The token is not valid for a while, as when the API server has just started; it is the same one after."""
    ground.proxy.token = "none"
    ground.proxy.drop_watches()
    yield
    ground.proxy.token = None


@contextlib.contextmanager
def _expired_token(ground: Ground) -> Iterator[None]:
    """The token expires, and its file is renewed only at the fault's end."""
    renewed = ground.token()
    ground.proxy.token = renewed
    ground.proxy.drop_watches()
    yield
    ground.operator.renew(renewed)


FAULTS: dict[str, Callable[[Ground], contextlib.AbstractContextManager[None]]] = {
    "every-request-500": _answers(500),
    "every-request-503-without-a-body": _answers(503),
    "every-request-403": _answers(403),
    "every-request-429": _answers(429, **{"Retry-After": "2"}),
    "every-request-429-at-once": _answers(429, **{"Retry-After": "0"}),
    "writes-409": _some(lambda asked: asked.method != "GET", Fault(status=409)),
    "watches-410": _some(lambda asked: asked.watch, Fault(event=EXPIRED)),
    "connections-reset": _resets,
    "watches-dropped": _dropped_watches,
    "watches-stalled": _stalled_watches,
    "slow-answers": _slow,
    "api-server-restarted": _restart,
    "token-refused-for-a-while": _refused_token,
    "token-expired-and-renewed": _expired_token,
}
