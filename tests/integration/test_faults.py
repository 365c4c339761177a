"""Faults between the operator and the API server: nothing is lost, no request is repeated without pause, and what kopf
cannot recover from shows in /healthz."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator

import pytest

import installed
from apiserver import free_ports
from faults import FAULTS, Ground
from faulty import faulty_proxy
from in_pod import OperatorInPod
from kubelet import Kubelet, wait_for
from world import World

RESYNC_SECONDS, STUCK_SECONDS = 5, 4
SETTINGS = {"pollPeriodSeconds": 2, "resyncPeriodSeconds": RESYNC_SECONDS, "stuckAfterSeconds": STUCK_SECONDS}
MOST_REQUESTS = 60.0
"""Per second, from an operator with a dozen jobs that are looked at every two seconds or retried; one that repeats a
request without pause makes hundreds."""


@pytest.fixture
def ground(quiet_plane, quiet_account, quiet_namespace, tmp_path) -> Iterator[Ground]:
    """An operator behind a proxy, with a job that trains for each fault."""
    (port,) = free_ports(1)
    settings = tmp_path / "settings.yaml"
    settings.write_text(json.dumps({**SETTINGS, "healthPort": port, "trainerImage": "trainer:1"}))
    account = tmp_path / "service-account"
    account.mkdir()
    shutil.copy(quiet_plane.folder / "pki" / "apiserver.crt", account / "ca.crt")
    api, kubelet = quiet_plane.api(), Kubelet(quiet_plane.api())
    with faulty_proxy(quiet_plane) as proxy:
        operator = OperatorInPod(account, settings, tmp_path / "operator.log", port=proxy.port)
        operator.renew(installed.operator_token(quiet_plane))
        operator.start()
        kubelet.start()
        world = World(quiet_plane, api, kubelet, operator, quiet_namespace)
        try:
            yield Ground(world, proxy, operator, port, 3.0, lambda: installed.operator_token(quiet_plane))
        finally:
            code = operator.stop()
            kubelet.stop()
            api.close()
    assert code == 0


def test_nothing_is_lost_through_any_fault(ground, capsys) -> None:
    ground.train(list(FAULTS))
    for name in FAULTS:
        found = ground.through(name)
        with capsys.disabled():
            print(f"\n{name}: recovered in {found.seconds:.1f} s, {found.requests:.1f} requests/s", end="")
        assert found.requests <= MOST_REQUESTS, name
    wait_for(lambda: ground.problems() == [], "/healthz", seconds=30)
