"""One API server for the whole tier, and a fresh namespace for each test that asks for one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import installed
from apiserver import Api, ControlPlane, control_plane
from finetune_operator.first_runtime import default_runtime
from kubelet import Kubelet
from world import OperatorProcess, World, furnish

SETTINGS = {
    "pollPeriodSeconds": 0.3,
    "resyncPeriodSeconds": 1,
    "healthPort": 0,
    "trainerImage": "trainer:1",
    "networkPolicy": {"enabled": True},
    "progressStaleSeconds": 8,
}
"""Impatient, because a job takes seconds here; and any free port, because many may run on this machine."""


@pytest.fixture(scope="session")
def bare_plane(tmp_path_factory) -> Iterator[ControlPlane]:
    """A control plane as it came up: nothing of ours is installed."""
    with control_plane(tmp_path_factory.mktemp("control-plane")) as plane:
        yield plane


@pytest.fixture(scope="session")
def plane(bare_plane) -> ControlPlane:
    """The control plane with our two kinds."""
    installed.kinds(bare_plane)
    return bare_plane


@pytest.fixture(scope="session")
def api(plane) -> Iterator[Api]:
    """The administrator's connection."""
    connection = plane.api()
    yield connection
    connection.close()


@contextmanager
def temporary_namespace(api: Api) -> Iterator[str]:
    """A namespace, deleted afterwards."""
    made = api.post("/api/v1/namespaces", {"metadata": {"generateName": "test-"}}).must()["metadata"]["name"]
    yield made
    api.delete(f"/api/v1/namespaces/{made}")


@pytest.fixture
def namespace(api) -> Iterator[str]:
    """A namespace of the test's own."""
    with temporary_namespace(api) as made:
        yield made


@pytest.fixture(scope="session")
def operator_account(plane, tmp_path_factory) -> Path:
    """A kubeconfig of the operator's service account, with the rights that the chart grants and no others."""
    return installed.operator_account(plane, tmp_path_factory.mktemp("operator"))


@pytest.fixture(scope="session")
def operator(operator_account) -> Iterator[OperatorProcess]:
    """The operator as shipped; it has made the default runtime."""
    folder = operator_account.parent
    (folder / "settings.yaml").write_text(json.dumps(SETTINGS))
    running = OperatorProcess(operator_account, folder / "settings.yaml", folder / "operator.log")
    running.start()
    try:
        running.wait_for_log("made FineTuneRuntime default", 60)
        yield running
    finally:
        code = running.stop()
    assert code == 0


@pytest.fixture(scope="session")
def kubelet(plane) -> Iterator[Kubelet]:
    """Runs the pods."""
    with Kubelet(plane.api()) as running:
        yield running


@pytest.fixture
def world(plane, api, operator, kubelet, namespace) -> World:
    """A namespace of the test's own, where jobs run."""
    made = World(plane, api, kubelet, operator, namespace)
    made.prepare()
    return made


@pytest.fixture(scope="module")
def shared_world(plane, api, operator, kubelet) -> Iterator[World]:
    """A namespace for jobs that take long and run side by side."""
    with temporary_namespace(api) as name:
        made = World(plane, api, kubelet, operator, name)
        made.prepare()
        yield made


@pytest.fixture(scope="session")
def quiet_plane(tmp_path_factory) -> Iterator[ControlPlane]:
    """A control plane with our kinds, on which no operator runs but those that a test starts."""
    with control_plane(tmp_path_factory.mktemp("quiet-plane")) as plane:
        installed.kinds(plane)
        yield plane


@pytest.fixture(scope="session")
def quiet_account(quiet_plane, tmp_path_factory) -> Path:
    """A kubeconfig of the operator's service account there."""
    account = installed.operator_account(quiet_plane, tmp_path_factory.mktemp("quiet"))
    quiet_plane.kubectl("create", "-f", "-", stdin=json.dumps(default_runtime("trainer:1")))
    return account


@pytest.fixture
def quiet_namespace(quiet_plane) -> Iterator[str]:
    """A namespace there with what a small job needs."""
    api = quiet_plane.api()
    with temporary_namespace(api) as name:
        furnish(api, name)
        yield name
        api.close()  # nobody may have spoken on it for long
    api.close()


@pytest.fixture(scope="module")
def own_plane(tmp_path_factory) -> Iterator[ControlPlane]:
    """A control plane for a module whose operators are its own: none else works on its jobs."""
    with control_plane(tmp_path_factory.mktemp("own")) as plane:
        yield plane


@pytest.fixture
def own_namespace(own_plane) -> Iterator[str]:
    """A namespace on it."""
    api = own_plane.api()
    with temporary_namespace(api) as made:
        yield made
    api.close()


@pytest.fixture
def own_namespaces(own_plane) -> Iterator[tuple[str, str, str]]:
    """Three namespaces on it."""
    api = own_plane.api()
    with temporary_namespace(api) as one, temporary_namespace(api) as two, temporary_namespace(api) as three:
        yield one, two, three
    api.close()
