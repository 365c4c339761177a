"""A FineTuneJob from apply to its final state, by the operator under its shipped role."""

from __future__ import annotations

import json
import threading

from finetune_api.failures import Failure, FailureCode
from finetune_api.names import CONFIG_ANNOTATION
from finetune_api.report import EarlyStop
from finetune_api.status import DataError, DataStatus
from finetune_api.trainer import TrainerConfig
from kubelet import Behaviour, wait_for
from manifests import job
from world import PREPARED, progress, published, script, well


def test_from_apply_to_complete(world) -> None:
    hold = threading.Event()
    train = Behaviour((progress(1), progress(2)), until=hold, word=published("sft"))
    uid = world.apply("sft", script("sft", train=[train]))
    world.wait("sft", "Running")
    wait_for(lambda: world.status("sft").get("progress", {}).get("display") == "2/4", "progress in the status")
    shown = world.plane.kubectl("get", "ftj", "sft", "-n", world.namespace, "--no-headers").split()
    assert shown[:4] == ["sft", "Running", "2/4", f"{1 / 3:.16g}"]
    hold.set()
    world.plane.kubectl("wait", "-n", world.namespace, "--for=condition=Complete", "ftj/sft", "--timeout=30s")
    status = world.status("sft")
    assert status["phase"] == "Completed"
    assert status["id"] == f"ft-{uid}"
    assert status["data"]["rows"] == PREPARED["data"].rows
    assert status["resolved"]["totalSteps"] == 4
    assert status["resolved"]["runtime"]["name"] == "default"
    assert [c["name"] for c in status["checkpoints"]] == ["sft:4"]
    assert status["output"]["adapterUri"] == "pvc://finetune-outputs/x/adapter"
    assert [a["exitCode"] for a in status["attempts"]] == [0, 0]
    assert {c["type"]: c["status"] for c in status["conditions"]} == {
        "Accepted": "True",
        "DataReady": "True",
        "Running": "False",
        "Published": "True",
        "Complete": "True",
    }


def test_children_belong_to_their_job_and_meet_the_restricted_standard(world) -> None:
    world.restrict()
    uid = world.apply("sft")
    world.wait("sft", "Complete")
    children = world.children("sft")
    assert set(children) == {"sft-prepare", "sft-train"}
    for child in children.values():
        (owner,) = child["metadata"]["ownerReferences"]
        assert (owner["kind"], owner["uid"], owner["controller"]) == ("FineTuneJob", uid, True)
        assert child["status"]["succeeded"] == 1
    assert "finalizers" not in world.get("sft")["metadata"]
    assert not world.get("sft")["metadata"].get("annotations")


def test_what_happened_is_told_in_events(world) -> None:
    world.apply("sft")
    world.wait("sft", "Complete")

    def told() -> set[str]:
        listed = world.api.get(f"/api/v1/namespaces/{world.namespace}/events").must()["items"]
        return {e["reason"] for e in listed if e["involvedObject"]["kind"] == "FineTuneJob"}

    wait_for(lambda: {"Accepted", "DataReady", "Running", "Succeeded"} <= told(), "the events, which follow the status")
    described = world.plane.kubectl("describe", "ftj", "sft", "-n", world.namespace)
    assert "published at pvc://finetune-outputs/x/adapter" in described.split("Events:")[1]


def test_dpo_waits_for_the_checkpoint_that_it_continues(world) -> None:
    dpo = {"type": "DPO", "dpo": {"beta": 0.1}}
    spec = {"fromCheckpoint": "sft", "trainingMethod": dpo, "trainingFile": "pvc://finetune-data/train.jsonl"}
    world.kubelet.scripts[world.namespace, "dpo"] = script("dpo")
    manifest = job("dpo", **spec)
    del manifest["spec"]["model"]
    world.api.post(world.jobs, manifest).must()
    refused = world.wait("dpo", "Accepted", "False", "CheckpointNotFound")
    assert "there is no FineTuneJob sft" in refused["message"]
    hold = threading.Event()
    world.apply("sft", script("sft", train=[Behaviour((progress(1),), until=hold, word=published("sft"))]))
    refused = world.wait("dpo", "Accepted", "False", "CheckpointNotReady")
    assert "FineTuneJob sft has not published it yet; published steps: none" in refused["message"]
    hold.set()
    world.wait("sft", "Complete")
    world.wait("dpo", "Complete")
    config = _trainer_config(world.children("dpo")["dpo-train"])
    assert config.start.adapter == "pvc://finetune-outputs/x/checkpoints/step-4"
    assert config.start.sha256 == "c" * 64
    assert config.start.model == "hf://org/model"
    assert config.lora is not None
    assert world.status("dpo")["resolved"]["model"]["checkpoint"] == config.start.adapter


def test_bad_rows_end_the_job_before_any_training_pod(world) -> None:
    errors = tuple(DataError(line=n, field="messages", code="EmptyMessages") for n in (2, 3, 5, 7, 11))
    data = {"data": DataStatus(format="conversation", rows=20, errors=errors, error_count=5)}
    args = {"count": "5", "file": "trainingFile", "line": "2", "field": "messages", "problem": "it is empty"}
    bad = Behaviour((), failure=Failure(code=FailureCode.DATA_INVALID, args=args), word=data)
    version = world.version()
    world.apply("bad", script("bad", prepare=bad))
    failed = world.wait("bad", "Failed", reason="DataInvalid")
    assert failed["message"].startswith("5 bad rows in trainingFile; the first: line 2")
    assert world.condition("bad", "DataReady")["reason"] == "DataInvalid"
    assert world.condition("bad", "Stalled")["status"] == "True"
    rows = world.status("bad")["data"]["errors"]
    assert [row["line"] for row in rows] == [2, 3, 5, 7, 11]
    assert all("give at least one message" in row["message"] for row in rows)
    assert world.made_since(version) == {"bad-prepare": 1}


def test_exit_zero_without_a_word_is_complete_and_says_so(world) -> None:
    silent = Behaviour(silent=True, seconds=0.2)
    world.apply("mute", script("mute", train=[silent]))
    world.wait("mute", "Complete", reason="NoFinalReport")


def test_an_early_stop_is_complete_with_its_own_reason(world) -> None:
    stop = EarlyStop(metric="loss", step=2, evaluations=2, best_step=1, best_value=0.5)
    word = {**published("early", step=2), "early_stop": stop}
    world.apply("early", script("early", train=[Behaviour((progress(1), progress(2)), word=word)]))
    told = world.wait("early", "Complete", reason="EarlyStopped")
    assert told["message"].startswith("stopped early after step 2 of 4: loss did not improve in 2 evaluations")
    assert world.status("early")["phase"] == "Completed"


def test_a_report_for_another_job_is_not_believed(world) -> None:
    liar = Behaviour(({**progress(3), "job_uid": "another"},), seconds=1.5, word={"job_uid": "another"})
    world.apply("lied", script("lied", train=[liar]))
    world.wait("lied", "Complete", reason="NoFinalReport")
    assert "progress" not in world.status("lied")


def test_the_runtime_is_frozen_when_the_job_starts(world) -> None:
    hold = threading.Event()
    world.apply("frozen", script("frozen", train=[well("frozen")], prepare=Behaviour((PREPARED,), until=hold)))
    wait_for(lambda: world.children("frozen"), "the prepare Job")
    where = "/apis/finetune.dev/v1alpha1/finetuneruntimes/default"
    image = world.api.get(where).must()["spec"]["image"]
    world.api.patch(where, {"spec": {"image": "another:1"}}).must()
    try:
        hold.set()
        world.wait("frozen", "Complete")
    finally:
        world.api.patch(where, {"spec": {"image": image}}).must()
    (container,) = world.children("frozen")["frozen-train"]["spec"]["template"]["spec"]["containers"]
    assert container["image"] == image


def _trainer_config(child) -> TrainerConfig:
    annotations = child["spec"]["template"]["metadata"]["annotations"]
    return TrainerConfig.model_validate(json.loads(annotations[CONFIG_ANNOTATION]))
