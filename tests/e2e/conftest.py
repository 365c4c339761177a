"""A real node with the operator installed by its chart, and jobs small enough to watch."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import bringup
import pytest

from e2e.jobs import DATA, NAMESPACE, OUTPUTS


@pytest.fixture(scope="session", autouse=True)
def installed() -> Iterator[None]:
    """Cluster, images and operator. A cluster that ran before stays; one that was started here goes."""
    look = subprocess.run(["hack/cluster.sh", "status"], cwd=bringup.ROOT, capture_output=True, check=False)
    bringup.cluster()
    try:
        bringup.images()
        bringup.operator()
        yield
    finally:
        if look.returncode:
            bringup.run("hack/cluster.sh", "down", "--wipe")


@pytest.fixture(scope="session")
def namespace(installed: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A namespace that enforces the restricted standard, with the demo's model and data on its volume."""
    bringup.empty_namespace(NAMESPACE, (DATA, OUTPUTS))
    folder = tmp_path_factory.mktemp("data")
    bringup.run(sys.executable, "hack/demo/material.py", str(folder), quiet=True)
    bringup.run("hack/volume.sh", "put", DATA, NAMESPACE, str(folder), quiet=True)
    yield NAMESPACE
    if not os.environ.get("KEEP"):
        bringup.run("kubectl", "delete", "namespace", NAMESPACE, "--timeout=180s", quiet=True)
        for claim in (DATA, OUTPUTS):
            bringup.run("hack/volume.sh", "delete", claim, NAMESPACE, quiet=True)
