"""Faults between the operator and the API server: nothing is lost, no request is repeated without pause, and what kopf
cannot recover from shows in /healthz."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

import faults
from faults import EXPIRED, FAULTS, Ground
from faulty import HTTP_GONE, NONE, Asked, Fault
from kubelet import wait_for

SETTINGS = {
    "pollPeriodSeconds": 2,
    "resyncPeriodSeconds": 5,
    "stuckAfterSeconds": 4,
    "networkPolicy": {"enabled": True},
}
MOST_REQUESTS = 60.0
"""Per second, from an operator with a dozen jobs that are looked at every two seconds or retried; one that repeats a
request without pause makes hundreds."""


@pytest.fixture
def ground(quiet_plane, quiet_account, quiet_namespace, tmp_path) -> Iterator[Ground]:
    """An operator behind a proxy."""
    with faults.ground(quiet_plane, quiet_namespace, tmp_path, SETTINGS, fault_seconds=3.0) as standing:
        yield standing


def test_nothing_is_lost_through_any_fault(ground, capsys) -> None:
    ground.train(list(FAULTS))
    for name in FAULTS:
        found = ground.through(name)
        with capsys.disabled():
            print(f"\n{name}: recovered in {found.seconds:.1f} s, {found.requests:.1f} requests/s", end="")
        assert found.requests <= MOST_REQUESTS, name
    wait_for(lambda: ground.problems() == [], "/healthz", seconds=30)


def test_a_watcher_that_cannot_go_on_ends_the_operator_and_the_next_one_misses_nothing(ground, capsys) -> None:
    """kopf's watcher gives up when the rest of a list that it reads in pages is gone."""
    for name in ("first", "second"):
        ground.world.apply(name)
        ground.world.wait(name, "Complete")

    def rule(asked: Asked) -> Fault:
        if asked.goes_on:
            return Fault(status=HTTP_GONE)
        if asked.watch:
            return Fault(event=EXPIRED)
        return Fault(page=1) if "limit" in asked.query and asked.path.endswith("/finetunejobs") else NONE

    process = ground.operator.process
    assert process is not None
    with ground.proxy.doing(rule):
        ground.proxy.drop_watches()
        ground.world.apply("meanwhile")
        assert process.wait(timeout=60) == 1
    ground.operator.process = None
    begun = time.monotonic()
    ground.operator.start()
    ground.world.wait("meanwhile", "Accepted", seconds=60)
    with capsys.disabled():
        print(f"\nexpired-list-token: recovered in {time.monotonic() - begun:.1f} s from the next start", end="")
    ground.world.wait("meanwhile", "Complete", seconds=60)
    wait_for(lambda: ground.problems() == [], "/healthz", seconds=30)
