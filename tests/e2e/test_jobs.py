"""Whole jobs on a real node: real pods of the real images, and what goes wrong with them."""

from __future__ import annotations

import json
import random
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from e2e.jobs import (
    NAMESPACE,
    OUTPUTS,
    a_job,
    apply,
    children,
    complete,
    condition,
    fetch,
    kubectl,
    long_job,
    objects,
    status,
    step,
    until,
    weights,
)

SYSTEM, OPERATOR = "finetune-system", "app.kubernetes.io/name=finetune-operator"
GRACE_SECONDS = 120
RESTARTS = 10


def metrics_of(job: str, tmp_path: Path) -> list[dict[str, float]]:
    """The rows of a job's metrics.jsonl, times left out."""
    folder = fetch(status(job)["outputName"], tmp_path / job)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if "per_second" not in k and "time" not in k} for row in rows]


def test_dpo_continues_the_sft_job_and_publishes_an_adapter(namespace: str, tmp_path: Path) -> None:
    """SFT, then DPO with an RPO term from its checkpoint: both Complete, adapter and merge where they were asked for,
    the table filled in; then all weights with SimPO from the best of it."""
    apply(a_job("sft", trainingFile="pvc://finetune-data/sft.jsonl", trainingMethod={"type": "SFT"}))
    complete("sft")
    dpo = a_job(
        "dpo",
        fromCheckpoint="sft",
        trainingMethod={"type": "DPO", "dpo": {"beta": 0.1, "rpoAlpha": 0.5}},
        validationFile="pvc://finetune-data/eval.jsonl",
        evaluation={"nEvals": 2},
        output={"uri": f"pvc://{OUTPUTS}", "merge": True},
    )
    del dpo["spec"]["model"]
    apply(dpo)
    done = complete("dpo")

    assert done["phase"] == "Completed"
    assert done["progress"]["step"] == done["progress"]["totalSteps"] == done["resolved"]["totalSteps"]
    assert done["data"]["errorCount"] == 0
    assert done["metrics"]["eval"]["rewardAccuracy"] > 0.5
    assert [c["type"] for c in done["checkpoints"]][-2:] == ["Final", "FinalMerged"]
    assert sum(c.get("best", False) for c in done["checkpoints"]) == 1
    assert done["checkpoints"][-1]["metrics"]["mergeError"] < 1e-3
    assert done["output"]["adapterUri"].startswith(f"pvc://{OUTPUTS}/{NAMESPACE}/")
    folder = fetch(done["outputName"], tmp_path / "dpo")
    assert (folder / "adapter" / "adapter_model.safetensors").stat().st_size > 0
    assert (folder / "merged" / "model.safetensors").stat().st_size > 0
    assert "Completed" in kubectl("-n", NAMESPACE, "get", "ftj", "dpo", "-o", "wide")

    simpo = a_job(
        "simpo",
        fromCheckpoint="dpo:best",
        trainingMethod={"type": "DPO", "dpo": {"beta": 2, "simpoGamma": 1}},
        trainingType={"type": "Full"},
    )
    del simpo["spec"]["model"]
    apply(simpo)
    assert complete("simpo")["output"]["modelUri"].endswith("/model")


def test_what_is_in_images_is_learned(namespace: str, tmp_path: Path) -> None:
    """DPO on rows whose answers only an image tells, with the vision encoder; a damaged image is found beforehand."""
    apply(vision_job("images-cut", trainingFile="pvc://finetune-data/images-cut.jsonl"))
    apply(
        vision_job(
            "images",
            validationFile="pvc://finetune-data/images-eval.jsonl",
            evaluation={"nEvals": 1},
            hyperparameters={"batchSize": 8, "nEpochs": 6, "learningRate": 3e-3},
        )
    )
    done = complete("images")
    assert done["data"]["images"] == done["data"]["pairs"] == 48
    assert done["metrics"]["eval"]["rewardAccuracy"] > 0.8
    folder = fetch(done["outputName"], tmp_path / "images")
    assert (folder / "adapter" / "preprocessor_config.json").is_file()
    assert 'src="data:image/webp' in (folder / "report.html").read_text()

    cut = until(lambda: condition("images-cut", "Failed"), "an end of the job with a damaged image")
    assert cut["reason"] == "DataInvalid"
    [error] = status("images-cut")["data"]["errors"]
    assert (error["line"], error["code"]) == (2, "InvalidImage")
    assert [pod["metadata"]["labels"]["finetune.dev/stage"].lower() for pod in children("pods", "images-cut")] in (
        [],
        ["prepare"],
    )


def vision_job(name: str, **spec: Any) -> dict[str, Any]:
    """A job on the model that sees."""
    given = {"trainingFile": "pvc://finetune-data/images.jsonl", "trainVision": True, **spec}
    return a_job(name, model="pvc://finetune-data/tiny-vision", **given)


def test_status_follows_the_trainer_while_it_runs(undisturbed: str) -> None:
    """The step in `kubectl get ftj` is never 20 s behind the step that the trainer serves itself."""
    first = until(lambda: step(undisturbed), "a first step in the status")
    for _ in range(3):
        served = int(trainer_report(undisturbed)["progress"]["step"])
        until(lambda at_least=served: step(undisturbed) >= at_least, f"step {served} in the status", seconds=20)
        assert status(undisturbed)["metrics"]["train"]["loss"] > 0
    assert step(undisturbed) > first


def trainer_report(job: str) -> dict:
    """What the training pod serves, asked from the node."""
    pod = next(p for p in children("pods", job) if p["metadata"]["labels"]["finetune.dev/stage"].lower() == "train")
    uid = pod["metadata"]["labels"]["finetune.dev/job-uid"]
    address = f"http://{pod['status']['podIP']}:8080/progress"
    answer = subprocess.run(
        ["curl", "-sf", "-m", "3", "-H", f"X-Finetune-Job: {uid}", address], capture_output=True, check=True
    )
    return dict(json.loads(answer.stdout))


def test_operator_killed_ten_times_changes_nothing(undisturbed: str, tmp_path: Path) -> None:
    """The job ends with the weights of one that nothing happened to, and no child is made twice."""
    apply(long_job("survivor"))
    until(lambda: step("survivor"), "a first step in the status")
    chance, uids = random.Random(5), set()
    for _ in range(RESTARTS):
        time.sleep(chance.uniform(0.2, 3))
        uids |= {c["metadata"]["uid"] for c in children("jobs", "survivor")}
        kubectl("-n", SYSTEM, "delete", "pod", "-l", OPERATOR, "--grace-period=0", "--force")
    done = complete("survivor")
    uids |= {c["metadata"]["uid"] for c in children("jobs", "survivor")}
    assert len(uids) == 2
    assert len(done["attempts"]) == 2
    steps = [row["step"] for row in metrics_of("survivor", tmp_path) if "train/loss" in row]
    assert steps == list(range(1, done["resolved"]["totalSteps"] + 1))
    assert weights("survivor") == weights(undisturbed)


def test_deleted_training_pod_goes_on_from_the_saved_state(undisturbed: str) -> None:
    """A new pod takes up the recovery state, the attempts tell it, and the weights are those of an undisturbed run."""
    apply(long_job("evicted"))
    until(lambda: step("evicted") >= 10, "ten steps")
    pod = next(p["metadata"]["name"] for p in children("pods", "evicted") if "-train" in p["metadata"]["name"])
    kubectl("-n", NAMESPACE, "delete", "pod", pod, "--wait=false")
    done = complete("evicted")
    resumed = [a["resumedFromStep"] for a in done["attempts"] if "-train" in a["pod"] and a["pod"] != pod]
    assert len(resumed) == 1
    assert resumed[0] >= 10
    assert done["restarts"] == 0
    assert weights("evicted") == weights(undisturbed)


def test_job_applied_again_equals_a_fresh_one(namespace: str, tmp_path: Path) -> None:
    """Deleted in the middle, every child goes; applied again with another learning rate, nothing of the old is used."""
    apply(long_job("again", epochs=2))
    until(lambda: step("again") >= 5, "five steps")
    kubectl("-n", NAMESPACE, "delete", "ftj", "again", "--wait=false")
    other = a_job("again", hyperparameters={"batchSize": 4, "nEpochs": 1, "learningRate": 5e-4})
    gone = [c["metadata"]["uid"] for kind in ("jobs", "pods") for c in children(kind, "again")]
    apply(other)
    until(
        lambda: not {c["metadata"]["uid"] for kind in ("jobs", "pods") for c in children(kind, "again")} & set(gone),
        "every child of the deleted job gone",
        seconds=GRACE_SECONDS + 30,
    )
    complete("again")
    fresh = a_job("fresh", hyperparameters=other["spec"]["hyperparameters"])
    apply(fresh)
    complete("fresh")
    assert status("again")["checkpoints"][-1]["sha256"] == status("fresh")["checkpoints"][-1]["sha256"]
    assert metrics_of("again", tmp_path) == metrics_of("fresh", tmp_path)


BAD_ROWS = [
    ("not json", "InvalidJson"),
    (json.dumps({"input": {"messages": []}, "preferred_output": [], "non_preferred_output": []}), "EmptyMessages"),
    (
        json.dumps(
            {
                "input": {"messages": [{"role": "robot", "content": "hi"}]},
                "preferred_output": [{"role": "assistant", "content": "a"}],
                "non_preferred_output": [{"role": "assistant", "content": "b"}],
            }
        ),
        "InvalidRole",
    ),
    (
        json.dumps(
            {
                "input": {"messages": [{"role": "user", "content": "hi"}]},
                "preferred_output": [{"role": "assistant", "content": "same"}],
                "non_preferred_output": [{"role": "assistant", "content": "same"}],
            }
        ),
        "IdenticalAnswers",
    ),
    (
        json.dumps({"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]}),
        "MixedFormats",
    ),
]


def test_bad_rows_fail_the_job_before_any_training_pod(namespace: str) -> None:
    """Five kinds of bad rows: each with line, field and sentence in the status; no training pod was ever made."""
    good = {
        "input": {"messages": [{"role": "user", "content": "hi"}]},
        "preferred_output": [{"role": "assistant", "content": "yes"}],
        "non_preferred_output": [{"role": "assistant", "content": "no"}],
    }
    lines = [json.dumps(good), *(row for row, _ in BAD_ROWS)]
    kubectl("-n", NAMESPACE, "create", "configmap", "finetune-bad", f"--from-literal=rows.jsonl={chr(10).join(lines)}")
    apply(a_job("bad", trainingFile="configmap://finetune-bad/rows.jsonl"))
    until(lambda: condition("bad", "Failed").get("status") == "True", "the job failed")
    found = status("bad")
    assert condition("bad", "Failed")["reason"] == "DataInvalid"
    assert {(e["line"], e["code"]) for e in found["data"]["errors"]} >= {
        (line, code) for line, (_, code) in enumerate(BAD_ROWS, start=2)
    }
    assert all(e["message"] for e in found["data"]["errors"])
    assert [j["metadata"]["name"] for j in children("jobs", "bad")] == ["bad-prepare"]


@pytest.mark.parametrize("field", ["claim", "uri"])
def test_source_outside_access_is_refused_with_the_entry_to_add(namespace: str, field: str) -> None:
    """Accepted=False, on a real cluster under the shipped role."""
    name, spec = {
        "claim": ("outside-claim", {"trainingFile": "pvc://secret-data/x.jsonl"}),
        "uri": ("outside-output", {"output": {"uri": "pvc://other-team/out"}}),
    }[field]
    apply(a_job(name, **spec))
    refused = until(lambda: condition(name, "Accepted"), "a verdict", seconds=20)
    assert (refused["status"], refused["reason"]) == ("False", "SourceNotAllowed")
    assert ("secret-data" if field == "claim" else "other-team") in refused["message"]
    assert "access.claims" in refused["message"]


def test_operator_pod_is_hardened() -> None:
    """Non-root, read-only root, nothing on secrets."""
    pods = json.loads(kubectl("-n", SYSTEM, "get", "pods", "-l", OPERATOR, "-o", "json"))["items"]
    pod = next(p for p in pods if p["status"]["phase"] == "Running")
    (container,) = pod["spec"]["containers"]
    security = {**pod["spec"]["securityContext"], **container["securityContext"]}
    assert security["runAsNonRoot"] is True
    assert security["readOnlyRootFilesystem"] is True
    assert security["capabilities"]["drop"] == ["ALL"]
    account = f"system:serviceaccount:{SYSTEM}:{pod['spec']['serviceAccountName']}"
    for verb in ("get", "list", "watch", "create"):
        assert kubectl("auth", "can-i", verb, "secrets", "-A", f"--as={account}", check=False) == "no"


def test_training_pods_meet_the_restricted_standard(namespace: str) -> None:
    """The namespace enforces it, so every pod that ran there met it."""
    labels = json.loads(kubectl("get", "namespace", NAMESPACE, "-o", "json"))["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
    assert objects("pods")
