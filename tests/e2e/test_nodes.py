"""A job on several nodes: real pods meet by plain torchrun, and a lost one is replaced together with its peers."""

from __future__ import annotations

import json
from collections.abc import Iterator

import bringup
import pytest

from e2e.jobs import NAMESPACE, Manifest, a_job, apply, children, complete, create_shared, kubectl, until

SHARED, RUNTIME, NAME = "finetune-shared", "several", "two-nodes"


@pytest.fixture
def several(namespace: str) -> Iterator[None]:
    """A runtime with two nodes, whose image trains nothing but meets, and a claim that two pods can mount."""
    image = bringup.output("hack/images.sh", "derive", "tests/e2e/several")
    spec = {"image": image, "limits": {"maxNodes": 2}, "terminationGracePeriodSeconds": 2}
    spec["defaults"] = {"resources": {"cpu": "100m", "memory": "1Gi"}}
    metadata = {"name": RUNTIME}
    apply({"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneRuntime", "metadata": metadata, "spec": spec})
    create_shared(SHARED)
    kubectl("-n", NAMESPACE, "create", "configmap", "finetune-rows", "--from-literal=rows.jsonl={}")
    yield
    # With its pods, which use the claim as long as they are there.
    kubectl("-n", NAMESPACE, "delete", "ftj", NAME, "--cascade=foreground", "--timeout=60s")
    kubectl("delete", "ftr", RUNTIME)
    kubectl("-n", NAMESPACE, "delete", "configmap", "finetune-rows")
    bringup.run("hack/volume.sh", "delete", SHARED, NAMESPACE, quiet=True)


def training_pods(job: str) -> list[Manifest]:
    """The training pods, by index and age."""
    pods = [p for p in children("pods", job) if p["metadata"]["labels"]["finetune.dev/stage"] == "train"]
    return sorted(pods, key=lambda p: (index(p), p["metadata"]["creationTimestamp"]))


def index(pod: Manifest) -> int:
    return int(pod["metadata"]["annotations"]["batch.kubernetes.io/job-completion-index"])


def met(job: str) -> list[str]:
    """The running pods of the job, by index, once both say that they have met; empty before."""
    running = [p["metadata"]["name"] for p in training_pods(job) if p["status"]["phase"] == "Running"]
    logs = [kubectl("-n", NAMESPACE, "logs", name, check=False) for name in running]
    return running if len(running) == 2 and all("of 2 has met the others" in log for log in logs) else []


def exit_codes(job: str) -> dict[str, int]:
    """The exit code of each training pod that has ended and is still there."""
    ends = {p["metadata"]["name"]: p["status"].get("containerStatuses", [{}])[0] for p in training_pods(job)}
    codes = {name: end.get("state", {}).get("terminated", {}).get("exitCode") for name, end in ends.items()}
    return {name: code for name, code in codes.items() if code is not None}


def batch_job(job: str) -> Manifest:
    return dict(json.loads(kubectl("-n", NAMESPACE, "get", "job", f"{job}-train", "-o", "json")))


def test_two_nodes_meet_lose_one_meet_again_and_end_well(several: None) -> None:
    """The lost pod counts once, its peer (exit 4) not at all; both are replaced, meet by the old names, and exit 0."""
    name = NAME
    spec = {"model": "org/none", "trainingFile": "configmap://finetune-rows/rows.jsonl"}
    apply(a_job(name, runtime=RUNTIME, resources={"nodes": 2}, output={"uri": f"pvc://{SHARED}"}, **spec))
    first, second = until(lambda: met(name), "both pods say that they have met", seconds=60)
    made = [
        (o["kind"], o["metadata"]["name"]) for kind in ("services", "networkpolicies") for o in children(kind, name)
    ]
    assert made == [("Service", f"{name}-train"), ("NetworkPolicy", name)]

    kubectl("-n", NAMESPACE, "delete", "pod", second, "--wait=false")
    until(lambda: exit_codes(name).get(first) == 4, "the peer has ended with exit 4", seconds=30)
    again = until(lambda: met(name), "two new pods say that they have met", seconds=60)
    assert not {first, second} & set(again)
    status = batch_job(name)["status"]
    assert (status["failed"], status["active"]) == (1, 2)

    kubectl("-n", NAMESPACE, "exec", again[0], "--", "touch", f"/mnt/claims/{SHARED}/{name}.release")
    done = complete(name, seconds=60)
    assert (done["restarts"], done["disruptions"]) == (1, 0)
    assert batch_job(name)["status"]["failed"] == 1
    assert {exit_codes(name).get(pod) for pod in again} <= {0, None}
    assert exit_codes(name)[again[0]] == 0
