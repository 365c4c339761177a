"""Two pods without any volume: model, data, state and result lie in an object store, and one of them has to go."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import bringup
import fsspec
import pytest

from buckets import CREDENTIALS, Buckets, serving
from e2e.jobs import NAMESPACE, Manifest, a_job, apply, children, complete, kubectl, step, until
from finetune_trainer.files import weights_digest

RUNTIME, SECRET, JOB = "object-store", "object-store", "to-a-store"


def address_for_pods() -> str:
    """Where this machine is reached from the node, and so by its pods: what it would ask the node from."""
    nodes = json.loads(kubectl("get", "nodes", "-o", "json"))["items"]
    addresses = {a["type"]: a["address"] for a in nodes[0]["status"]["addresses"]}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        asking.connect((addresses["InternalIP"], 9))  # sends nothing
        return str(asking.getsockname()[0])


@pytest.fixture
def bucket(material: Path) -> Iterator[tuple[Buckets, str]]:
    """A store that pods reach, with the demo's model and rows in a bucket."""
    with serving(address_for_pods()) as buckets:
        uri = buckets.new()
        buckets.files.put_file(str(material / "train.jsonl"), f"{uri}/data/train.jsonl")
        buckets.files.put(str(material / "tiny-chat"), f"{uri}/tiny-chat", recursive=True)
        yield buckets, uri


@pytest.fixture
def runtime(namespace: str, bucket: tuple[Buckets, str]) -> Iterator[None]:
    """A runtime with credentials for the bucket, from a Secret in the job's namespace."""
    buckets, uri = bucket
    values = {**CREDENTIALS, "AWS_ENDPOINT_URL_S3": buckets.url}
    metadata = {"name": SECRET, "namespace": namespace}
    apply({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": values})
    spec = {
        "image": bringup.output("hack/images.sh", "tag", "trainer"),
        "limits": {"maxNodes": 2},
        "access": {"uriPrefixes": {"read": [f"{uri}/"], "write": [f"{uri}/"]}},
        "podTemplate": {"envFrom": [{"secretRef": {"name": SECRET}}]},
        "defaults": {
            "resources": {"cpu": "100m", "memory": "2Gi"},
            "output": {"uri": f"{uri}/models/{{namespace}}"},
        },
    }
    kind = {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneRuntime"}
    apply({**kind, "metadata": {"name": RUNTIME}, "spec": spec})
    yield
    kubectl("-n", NAMESPACE, "delete", "ftj", JOB, "--ignore-not-found", "--cascade=foreground", "--timeout=60s")
    kubectl("-n", NAMESPACE, "delete", "secret", SECRET)
    kubectl("delete", "ftr", RUNTIME)


def job(uri: str) -> Manifest:
    """Full training of some dozen steps that saves its state after each; the output is the runtime's default."""
    made = a_job(
        JOB,
        runtime=RUNTIME,
        model=f"{uri}/tiny-chat",
        trainingFile=f"{uri}/data/train.jsonl",
        trainingType={"type": "Full"},
        hyperparameters={"batchSize": 4, "nEpochs": 4, "learningRate": 1e-4},
        checkpointing={"nCheckpoints": 2, "recoveryPeriodSeconds": 0},
        resources={"nodes": 2, "gpusPerNode": 0},
    )
    del made["spec"]["output"]
    return made


def test_two_pods_train_from_a_store_to_a_store_though_one_has_to_go(
    runtime: None, bucket: tuple[Buckets, str], tmp_path: Path
) -> None:
    buckets, uri = bucket
    apply(job(uri))
    until(lambda: step(JOB) >= 5, "both train")
    pods = [pod["metadata"]["name"] for pod in children("pods", JOB) if "-train-1-" in pod["metadata"]["name"]]
    kubectl("-n", NAMESPACE, "delete", "pod", *pods, "--wait=false")
    done = complete(JOB)
    assert (done["restarts"], done["disruptions"] > 0) == (0, True)
    assert any(attempt.get("resumedFromStep", 0) > 0 for attempt in done["attempts"])
    assert done["output"]["modelUri"] == f"{uri}/models/{NAMESPACE}/{done['outputName']}/model"
    for number, checkpoint in enumerate(done["checkpoints"]):
        assert weights_digest(downloaded(checkpoint["uri"], tmp_path / str(number))) == checkpoint["sha256"]
    final = done["checkpoints"][-1]
    assert weights_digest(downloaded(done["output"]["modelUri"], tmp_path / "model")) == final["sha256"]
    names = {path.split("/", 1)[0] for path in buckets.below(f"{uri}/models/{NAMESPACE}")}
    assert names == {done["outputName"].split("/", 1)[0]}, "the private state is gone"


def downloaded(uri: str, folder: Path) -> Path:
    """A folder of the store on this machine."""
    fsspec.filesystem("s3", skip_instance_cache=True).get(f"{uri}/", f"{folder}/", recursive=True)
    return folder
