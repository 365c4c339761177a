"""One API server for the whole tier, and a fresh namespace for each test that asks for one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from apiserver import Api, ControlPlane, control_plane
from manifests import ROOT


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


@pytest.fixture
def namespace(api) -> Iterator[str]:
    """A namespace of the test's own, deleted behind it."""
    made = api.post("/api/v1/namespaces", {"metadata": {"generateName": "test-"}}).must()["metadata"]["name"]
    yield made
    api.delete(f"/api/v1/namespaces/{made}")
