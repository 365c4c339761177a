"""`finetune-train local --checkpoint`: one job goes on from what another published."""

from __future__ import annotations

import json
import math
from threading import Event

import pytest

from finetune_trainer.__main__ import main
from finetune_trainer.local import LocalRun, Refused
from rows import preference
from training import (
    QUICK,
    conversation_rows,
    local,
    manifest,
    metrics_rows,
    write_jsonl,
    write_manifest,
)


def test_dpo_goes_on_with_the_adapter_of_an_sft_job(tmp_path, tiny_model, training_file, capsys):
    conversations = write_jsonl(tmp_path / "sft.jsonl", conversation_rows(6))
    sft = manifest(
        tiny_model,
        conversations,
        "sft",
        trainingMethod={"type": "SFT"},
        trainingType={"lora": {"rank": 2, "trainableModules": ["q_proj", "v_proj"]}},
        hyperparameters=QUICK,
        checkpointing={"nCheckpoints": 2},
    )
    assert local(tmp_path, sft) == 0
    dpo = manifest(tiny_model, training_file, hyperparameters=QUICK, trainingType={"type": "LoRA"})
    del dpo["spec"]["model"]
    dpo["spec"]["fromCheckpoint"] = "sft"
    assert local(tmp_path, dpo) == 10
    assert "--checkpoint sft=DIR" in capsys.readouterr().err
    earlier = f"sft={tmp_path}/out/sft"
    assert local(tmp_path, dpo, "--checkpoint", earlier) == 0
    described = json.loads((tmp_path / "out" / "dpo" / "adapter" / "adapter_config.json").read_text())
    assert (described["r"], described["target_modules"]) == (2, ["q_proj", "v_proj"])
    assert metrics_rows(tmp_path / "out" / "dpo" / "metrics.jsonl")[0]["train/loss"] == pytest.approx(math.log(2))

    dpo["metadata"]["name"] = "wider"
    dpo["spec"]["trainingType"] = {"type": "LoRA", "lora": {"rank": 8}}
    assert local(tmp_path, dpo, "--checkpoint", earlier) == 10
    assert "lora.rank is 8, but the adapter of fromCheckpoint has 2: leave it out" in capsys.readouterr().err

    dpo["metadata"]["name"] = "whole"
    dpo["spec"] |= {"trainingType": {"type": "Full"}, "fromCheckpoint": "sft:1"}
    assert local(tmp_path, dpo, "--checkpoint", earlier) == 0
    assert (tmp_path / "out" / "whole" / "model" / "model.safetensors").is_file()

    dpo["metadata"]["name"] = "missing"
    dpo["spec"]["fromCheckpoint"] = "sft:7"
    assert local(tmp_path, dpo, "--checkpoint", earlier) == 10
    assert "has no checkpoint of step 7: it has 1, 2" in capsys.readouterr().err


def test_a_job_starts_from_the_best_checkpoint_of_another(tmp_path, tiny_model, training_file):
    strange = [preference(f"{number}?", "\N{OHM SIGN}" * 20, "no") for number in range(3)]
    validation = write_jsonl(tmp_path / "eval.jsonl", strange)  # the less likely, the more is learned
    sft = manifest(
        tiny_model,
        training_file,
        "sft",
        trainingMethod={"type": "SFT"},
        validationFile=f"file://{validation}",
        evaluation={"nEvals": 4},
        hyperparameters={**QUICK, "nEpochs": 6, "learningRate": 0.1},
    )
    assert local(tmp_path, sft) == 0
    output = tmp_path / "out" / "sft"
    evaluated = {row["step"]: row["eval/loss"] for row in metrics_rows(output / "metrics.jsonl") if "eval/loss" in row}
    evaluated.pop(0)
    best = min(evaluated, key=lambda step: evaluated[step])
    dpo = manifest(tiny_model, training_file, fromCheckpoint="sft:best", hyperparameters=QUICK)
    del dpo["spec"]["model"]
    del dpo["spec"]["trainingType"]
    assert best != max(evaluated), "otherwise the final one would do as well"
    run = LocalRun(write_manifest(tmp_path / "job.yaml", dpo), tmp_path / "dpo", None, {}, {"sft": output})
    assert run.config().start.adapter == f"file://{output}/checkpoints/step-{best}"
    assert run.run(Event()) == 0


def test_merged_weights_are_told_with_their_error_and_are_a_model_to_go_on_from(
    tmp_path, tiny_model, training_file, capsys
):
    job = manifest(tiny_model, training_file, output={"merge": True}, hyperparameters=QUICK)
    assert local(tmp_path, job) == 0
    told = capsys.readouterr().out
    assert "mergeError " in told
    assert f"merged: file://{tmp_path}/out/dpo/merged" in told
    again = manifest(tmp_path / "out" / "dpo" / "merged", training_file, "again", hyperparameters=QUICK)
    assert local(tmp_path, again) == 0
    continued = manifest(tiny_model, training_file, "continued", fromCheckpoint="dpo:2", hyperparameters=QUICK)
    del continued["spec"]["model"]
    del continued["spec"]["trainingType"]
    assert local(tmp_path, continued, "--checkpoint", f"dpo={tmp_path}/out/dpo") == 0, (
        "the adapter, not its merged form"
    )
    assert (tmp_path / "out" / "continued" / "adapter").is_dir()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "adapter_config.json cannot be read"),
        ("{", "adapter_config.json cannot be read"),
        ('{"r": 4}', "adapter_config.json cannot be read"),
        ('{"r": "4", "lora_alpha": 8, "target_modules": ["a"]}', "adapter_config.json cannot be read"),
        ('{"r": 4, "lora_alpha": 8, "target_modules": ".*_proj"}', "target_modules is an expression"),
    ],
)
def test_an_earlier_job_with_a_damaged_adapter_is_told(tmp_path, content, told, capsys):
    earlier = tmp_path / "earlier"
    folder = earlier / "checkpoints" / "step-2"
    folder.mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_bytes(b"")
    if content is not None:
        (folder / "adapter_config.json").write_text(content)
    entry = {
        "name": "sft:2",
        "step": 2,
        "type": "Final",
        "uri": "u",
        "time": "2026-01-01T00:00:00Z",
        "sizeBytes": 1,
        "sha256": "0",
    }
    job = {"namespace": "ml", "name": "sft", "uid": "1"}
    document = {"job": job, "start": {"model": "hf://org/m"}, "checkpoints": [entry]}
    (earlier / "manifest.json").write_text(json.dumps(document))
    dpo = manifest(tmp_path, tmp_path / "train.jsonl", fromCheckpoint="sft")
    del dpo["spec"]["model"], dpo["spec"]["trainingType"]
    path = write_manifest(tmp_path / "job.yaml", dpo)
    arguments = ["local", str(path), "--output", str(tmp_path / "out"), "--checkpoint", f"sft={earlier}"]
    assert main(arguments) == 10
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("best", "ended", "found"),
    [
        (4, True, "checkpoints/step-4"),
        (None, True, "has no best checkpoint, because its job made no evaluations: name a step of 2, 4, 6"),
        (4, False, "has not ended, so that a better checkpoint may follow"),
    ],
)
def test_the_best_checkpoint_of_an_earlier_job(tmp_path, best, ended, found):
    job = {"namespace": "ml", "name": "sft", "uid": "1"}
    same = {"time": "2026-01-01T00:00:00Z", "sizeBytes": 1, "sha256": "0", "uri": "u"}
    entries = [
        {"name": f"sft:{step}", "step": step, "type": kind, "best": step == best, **same}
        for step, kind in ((2, "Intermediate"), (4, "Intermediate"), (6, "Final"), (6, "FinalMerged"))
    ]
    last = {"last": {"jobUid": "1", "stage": "Train"}} if ended else {}
    document = {"job": job, "start": {"model": "hf://org/m"}, "checkpoints": entries, **last}
    (tmp_path / "manifest.json").write_text(json.dumps(document))
    dpo = manifest(tmp_path, tmp_path / "train.jsonl", fromCheckpoint="sft:best", trainingType={"type": "Full"})
    del dpo["spec"]["model"]
    run = LocalRun(write_manifest(tmp_path / "job.yaml", dpo), tmp_path / "out", None, {}, {"sft": tmp_path})
    try:
        told = run.config().start.model
    except Refused as refused:
        told = str(refused)
    assert found in told
