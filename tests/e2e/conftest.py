"""A real node with the operator installed by its chart, and jobs small enough to watch."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import bringup
import pytest

from e2e.jobs import DATA, NAMESPACE, OUTPUTS, apply, long_job
from pictures import colour_pairs
from tiny import save_vision_model
from training import write_jsonl


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
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the demo's model and data, and a model that sees with pairs about images, one file of them cut."""
    folder = tmp_path_factory.mktemp("data")
    bringup.run(sys.executable, "hack/demo/material.py", str(folder), quiet=True)
    save_vision_model(folder / "tiny-vision")
    pairs = colour_pairs(48)
    write_jsonl(folder / "images.jsonl", pairs)
    write_jsonl(folder / "images-eval.jsonl", colour_pairs(24, seed=1))
    image = pairs[1]["input"]["messages"][0]["content"][0]["image_url"]
    image["url"] = image["url"][: len(image["url"]) // 8 * 4]
    write_jsonl(folder / "images-cut.jsonl", pairs[:4])
    return folder


@pytest.fixture(scope="session")
def namespace(installed: None, material: Path) -> Iterator[str]:
    """A namespace that enforces the restricted standard, with the demo's model and data on its volume."""
    bringup.empty_namespace(NAMESPACE, (DATA, OUTPUTS))
    bringup.run("hack/volume.sh", "put", DATA, NAMESPACE, str(material), quiet=True)
    yield NAMESPACE
    if not os.environ.get("KEEP"):
        bringup.run("kubectl", "delete", "namespace", NAMESPACE, "--timeout=180s", quiet=True)
        for claim in (DATA, OUTPUTS):
            bringup.run("hack/volume.sh", "delete", claim, NAMESPACE, quiet=True)


@pytest.fixture(scope="session")
def undisturbed(namespace: str) -> str:
    """A long job that nothing happens to, just applied: what its disturbed twins must end equal to."""
    apply(long_job("undisturbed"))
    return "undisturbed"
