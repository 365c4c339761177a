"""A training on two nodes is the training on one: two real pods, one of which has to go in the middle."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import bringup
import pytest
import torch
from safetensors.torch import load_file

from e2e.jobs import (
    NAMESPACE,
    Manifest,
    a_job,
    apply,
    children,
    complete,
    create_shared,
    fetch,
    kubectl,
    status,
    step,
    until,
)

SHARED, RUNTIME = "finetune-both", "two-nodes"
ONE, TWO = "on-one-node", "on-two-nodes"


@pytest.fixture
def two_nodes(namespace: str, material: Path) -> Iterator[None]:
    """A runtime that takes two nodes, and a claim that both can mount, with model and data."""
    spec = {
        "image": bringup.output("hack/images.sh", "tag", "trainer"),
        "limits": {"maxNodes": 2},
        "defaults": {"resources": {"cpu": "100m", "memory": "2Gi"}},
    }
    metadata = {"name": RUNTIME}
    apply({"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneRuntime", "metadata": metadata, "spec": spec})
    create_shared(SHARED)
    bringup.run("hack/volume.sh", "put", SHARED, NAMESPACE, str(material), quiet=True)
    yield
    kubectl("-n", NAMESPACE, "delete", "ftj", ONE, TWO, "--ignore-not-found", "--cascade=foreground", "--timeout=60s")
    kubectl("delete", "ftr", RUNTIME)
    bringup.run("hack/volume.sh", "delete", SHARED, NAMESPACE, quiet=True)


def job(name: str, nodes: int) -> Manifest:
    """A job of some dozen steps that saves its state after each."""
    return a_job(
        name,
        runtime=RUNTIME,
        model=f"pvc://{SHARED}/tiny-chat",
        trainingFile=f"pvc://{SHARED}/train.jsonl",
        hyperparameters={"batchSize": 4, "nEpochs": 4, "learningRate": 1e-4},
        checkpointing={"recoveryPeriodSeconds": 0},
        output={"uri": f"pvc://{SHARED}/{name}"},
        resources={"nodes": nodes, "gpusPerNode": 0},
    )


def adapter(name: str, folder: Path) -> dict[str, torch.Tensor]:
    """The final adapter of a job."""
    where = status(name)["output"]["adapterUri"].removeprefix(f"pvc://{SHARED}/")
    return load_file(fetch(where, folder, SHARED) / "adapter_model.safetensors")


def test_two_nodes_train_what_one_trains_though_one_of_them_has_to_go(two_nodes: None, tmp_path: Path) -> None:
    apply(job(TWO, 2))
    until(lambda: step(TWO) >= 5, "both train")
    pods = [pod["metadata"]["name"] for pod in children("pods", TWO) if "-train-1-" in pod["metadata"]["name"]]
    kubectl("-n", NAMESPACE, "delete", "pod", *pods, "--wait=false")
    done = complete(TWO)
    assert (done["restarts"], done["disruptions"] > 0) == (0, True)
    assert any(attempt.get("resumedFromStep", 0) > 0 for attempt in done["attempts"])
    apply(job(ONE, 1))
    assert complete(ONE)["progress"]["step"] == done["progress"]["step"]
    one, two = adapter(ONE, tmp_path / "one"), adapter(TWO, tmp_path / "two")
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=0, atol=1e-5, msg=name)
