"""One API server for the whole tier, and a fresh namespace for each test that asks for one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from apiserver import Api, ControlPlane, control_plane
from kubelet import Kubelet
from manifests import ROOT
from world import OperatorProcess, World

SYSTEM = "finetune-system"
SETTINGS = {
    "pollPeriodSeconds": 0.3,
    "resyncPeriodSeconds": 1,
    "healthPort": 0,
    "trainerImage": "trainer:1",
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
    bare_plane.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(ROOT / "crds"))
    bare_plane.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=30s")
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
    chart = str(ROOT / "charts" / "finetune-operator")
    where = ["--namespace", SYSTEM, "--create-namespace", "--set", "crds.enabled=false"]
    installed = plane.run("helm", "upgrade", "--install", "finetune-operator", chart, *where)
    assert installed.returncode == 0, installed.stderr
    token = plane.kubectl("create", "token", "finetune-operator", "--namespace", SYSTEM, "--duration", "2h").strip()
    return plane.kubeconfig_for(token, tmp_path_factory.mktemp("operator") / "kubeconfig")


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
    thread = Kubelet(plane.api())
    thread.start()
    yield thread
    thread.stop()


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
