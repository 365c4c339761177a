"""`finetune-train local`: the manifest of the cluster, the numbers of a plain PyTorch loop."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from threading import Event

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch.nn.functional import logsigmoid
from transformers import AutoModelForCausalLM, AutoTokenizer, get_scheduler

from finetune_trainer.__main__ import main
from finetune_trainer.local import LocalRun
from finetune_trainer.step.packing import permutation
from held import single, tensorboard_series, written_series
from tiny import save_model
from training import (
    QUICK,
    local,
    manifest,
    metrics_rows,
    preference_rows,
    shared_preferences,
    write_jsonl,
    write_manifest,
)

MAX_LENGTH, BATCH, EPOCHS, RATE, BETA, SEED = 700, 16, 1, 1e-2, 0.2, 11


def texts(rows):
    return [m["content"] for row in rows for side in row.values() for m in (side if isinstance(side, list) else [])]


def shared(*lines: list[int]) -> int:
    """Tokens that all lines begin with."""
    return next((i for i, tokens in enumerate(zip(*lines, strict=False)) if len(set(tokens)) > 1), min(map(len, lines)))


def plain_dpo(folder: Path, rows: list[dict]) -> list[float]:
    """DPO as one would write it down: a row at a time, whole logits, no packing, no cache."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    pairs = []
    for row in rows:
        messages = row["input"]["messages"]
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
        sides = [
            tokenizer.apply_chat_template(messages + row[side])["input_ids"]
            for side in ("preferred_output", "non_preferred_output")
        ]
        if max(map(len, sides)) <= MAX_LENGTH:
            pairs.append((shared(prompt, *sides), *sides))
    torch.manual_seed(SEED)
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model = get_peft_model(base, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"))
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.01)
    total = EPOCHS * math.ceil(len(pairs) / BATCH)
    schedule = get_scheduler("cosine", optimizer, math.ceil(0.1 * total), total)

    def score(border, line):
        line = torch.tensor([line])
        logps = torch.log_softmax(model(line).logits[0, :-1], -1)
        return logps.gather(1, line[0, 1:, None])[border - 1 :].sum()

    with torch.no_grad():
        reference = [(score(border, w), score(border, loser)) for border, w, loser in pairs]
    losses = []
    for epoch in range(EPOCHS):
        order = permutation(len(pairs), SEED, epoch).tolist()
        for batch in (order[i : i + BATCH] for i in range(0, len(order), BATCH)):
            step = 0.0
            for i in batch:
                border, won, lost = pairs[i]
                margin = score(border, won) - reference[i][0] - score(border, lost) + reference[i][1]
                loss = -logsigmoid(BETA * margin) / len(batch)
                loss.backward()
                step += loss.item()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            losses.append(step)
    return losses


def test_losses_on_real_preferences_are_those_of_a_plain_loop(tmp_path, capsys):
    rows = shared_preferences()
    model = save_model(tmp_path / "model", texts=texts(rows), vocab_size=1200, hidden=32, layers=1)
    job = manifest(
        model,
        write_jsonl(tmp_path / "train.jsonl", rows),
        trainingMethod={"type": "DPO", "dpo": {"beta": BETA}},
        hyperparameters={
            "nEpochs": EPOCHS,
            "batchSize": BATCH,
            "learningRate": RATE,
            "warmupRatio": 0.1,
            "weightDecay": 0.01,
            "maxSeqLength": MAX_LENGTH,
            "seed": SEED,
        },
        tracking={"tensorboard": True},
    )
    output = tmp_path / "out"
    code = main(["local", str(write_manifest(tmp_path / "job.yaml", job)), "--output", str(output)])
    told = capsys.readouterr()
    assert code == 0, told.err
    assert f"shown at: file://{output}/tensorboard" in told.out
    assert tensorboard_series(output / "tensorboard") == single(written_series(output / "metrics.jsonl"))
    ours = [row["train/loss"] for row in metrics_rows(output / "metrics.jsonl")]
    plain = plain_dpo(model, rows)
    assert len(ours) == len(plain) >= 8
    assert ours[0] == pytest.approx(math.log(2), abs=1e-6)
    assert max(abs(loss - math.log(2)) for loss in ours) > 0.01, "the weights must have moved, or any loop would do"
    assert max(abs(a - b) for a, b in zip(ours, plain, strict=True)) < 1e-5
    assert f"result: file://{output}/adapter" in told.out
    assert f"report: file://{output}/report.html" in told.out
    assert not (output / ".finetune").exists(), "private state is gone"


def test_a_published_adapter_answers_as_plain_peft_says(tmp_path, tiny_model, training_file):
    validation = write_jsonl(tmp_path / "eval.jsonl", preference_rows(3, seed=1))
    job = manifest(
        tiny_model,
        training_file,
        validationFile=f"file://{validation}",
        evaluation={"nEvals": 1},
        hyperparameters=QUICK,
    )
    assert local(tmp_path, job) == 0
    output = tmp_path / "out" / "dpo"
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    adapted = PeftModel.from_pretrained(base, output / "adapter").eval()
    tokenizer = AutoTokenizer.from_pretrained(output / "adapter")
    scores = []
    for row in preference_rows(3, seed=1):
        messages = row["input"]["messages"]
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
        line = torch.tensor([tokenizer.apply_chat_template(messages + row["preferred_output"])["input_ids"]])
        with torch.no_grad():
            logps = torch.log_softmax(adapted(line).logits[0, :-1], -1).gather(1, line[0, 1:, None])
        scores.append(logps[len(prompt) - 1 :].sum().item())
    last = metrics_rows(output / "metrics.jsonl")[-1]
    assert last["step"] == 2
    assert last["eval/logps/chosen"] == pytest.approx(sum(scores) / 3, abs=1e-4)
    checkpoint = json.loads((output / "manifest.json").read_text())["checkpoints"][-1]
    assert checkpoint["metrics"]["evalLoss"] == pytest.approx(last["eval/loss"], rel=1e-5)


def test_claims_are_folders_and_the_runtime_fills_in(tmp_path, tiny_model, training_file, capsys):
    runtime = {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneRuntime",
        "metadata": {"name": "here"},
        "spec": {
            "image": "none",
            "models": [
                {
                    "name": "tiny",
                    "source": f"pvc://finetune-models/{tiny_model.name}",
                    "limits": {"lora": {"defaultRank": 3, "maxBatchSizeDpo": 5}},
                    "pricePerMillionTokens": 100_000,
                }
            ],
        },
    }
    write_manifest(tmp_path / "runtime.yaml", runtime)
    job = manifest(tiny_model, training_file, model="tiny", trainingFile="pvc://finetune-data/train.jsonl")
    job["spec"]["trainingType"] = {"type": "LoRA"}
    mapped = ["--claim", f"finetune-models={tiny_model.parent}", "--claim", f"finetune-data={tmp_path}"]
    assert local(tmp_path, job, "--runtime", str(tmp_path / "runtime.yaml"), *mapped) == 0
    output = tmp_path / "out" / "dpo"
    estimate = re.search(r"estimate: (\d+) tokens to train on, .*, price ([\d.]+), ", capsys.readouterr().out)
    assert estimate is not None
    assert float(estimate[2]) == int(estimate[1]) / 10, "a hundred thousand for a million tokens"
    assert json.loads((output / "adapter" / "adapter_config.json").read_text())["r"] == 3
    assert len(metrics_rows(output / "metrics.jsonl")) == 2, "6 rows in batches of at most 5"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"hyperparameters": {"warmupRatio": 2}}, "spec.hyperparameters.warmupRatio"),
        ({"evaluation": {"nEvals": 2}}, "nEvals needs a validationFile"),
        ({"fromCheckpoint": "sft"}, "You must specify either a model or a checkpoint to start from, not both"),
        ({"model": "nowhere"}, "spec.model nowhere is no Hub id"),
        ({"colour": "red"}, "spec.colour"),
        ({"resources": {"gpusPerNode": 2}}, "gpusPerNode is 2, and a local run takes one GPU: set it to 1 or 0"),
        ({"hfModelRevision": "main"}, "hfModelRevision needs a model from the Hugging Face Hub"),
        ({"fromHfModel": "me"}, "must be org/name[@revision] of the Hugging Face Hub"),
    ],
)
def test_what_the_cluster_would_refuse_is_refused_with_its_field(tmp_path, tiny_model, change, sentence, capsys):
    assert local(tmp_path, manifest(tiny_model, tmp_path / "none.jsonl", **change)) == 10
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out").exists(), "nothing is touched"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "holds 0 objects of kind FineTuneJob: give exactly one"),
        ("kind: FineTuneJob\n---\nkind: FineTuneJob\n", "holds 2 objects of kind FineTuneJob"),
        ("a: [", "is no YAML"),
        (None, "cannot be read: No such file or directory"),
    ],
)
def test_a_file_that_is_no_manifest_is_told(tmp_path, content, sentence, capsys):
    path = tmp_path / "job.yaml"
    if content is not None:
        path.write_text(content)
    assert main(["local", str(path), "--output", str(tmp_path / "out")]) == 10
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"\x00", b"[" * 1000, b"a: !!python/object:os.system {}\n"])
def test_bytes_that_are_no_yaml_are_told(tmp_path, content, capsys):
    path = tmp_path / "job.yaml"
    path.write_bytes(content)
    assert main(["local", str(path), "--output", str(tmp_path / "out")]) == 10
    assert "is no YAML" in capsys.readouterr().err


def test_an_output_that_is_a_file_is_told(tmp_path, tiny_model, training_file, capsys):
    path = write_manifest(tmp_path / "job.yaml", manifest(tiny_model, training_file))
    assert main(["local", str(path), "--output", str(training_file)]) == 22
    assert "train.jsonl cannot be written: Not a directory" in capsys.readouterr().err


def test_numbers_are_those_of_yaml_1_2(tmp_path, tiny_model, training_file):
    job = manifest(tiny_model, training_file)
    job["spec"]["hyperparameters"] = {"learningRate": "RATE"}
    path = tmp_path / "job.yaml"
    path.write_text(json.dumps(job).replace('"RATE"', "1e-5"))
    assert LocalRun(path, tmp_path / "out", None, {}, {}).config().hyperparameters.learning_rate == 1e-5


def test_bad_rows_are_listed_with_line_and_field(tmp_path, tiny_model, capsys):
    rows = preference_rows(4)
    rows[2]["preferred_output"][0]["content"] = ""
    file = write_jsonl(tmp_path / "train.jsonl", rows)
    assert local(tmp_path, manifest(tiny_model, file)) == 11
    told = capsys.readouterr().err
    assert "trainingFile line 3, preferred_output" in told
    assert "the answer is empty" in told


def test_running_it_again_changes_nothing_and_another_manifest_is_refused(tmp_path, tiny_model, training_file, capsys):
    job = manifest(tiny_model, training_file, hyperparameters=QUICK)
    assert local(tmp_path, job) == 0
    adapter = tmp_path / "out" / "dpo" / "adapter" / "adapter_model.safetensors"
    before = (adapter.read_bytes(), adapter.stat().st_mtime_ns)
    capsys.readouterr()
    assert local(tmp_path, job) == 0
    assert "done: 2/2 steps" in capsys.readouterr().out
    assert (adapter.read_bytes(), adapter.stat().st_mtime_ns) == before
    job["spec"]["hyperparameters"] = {**QUICK, "learningRate": 0.02}
    assert local(tmp_path, job) == 22
    assert "holds the output of another job" in capsys.readouterr().err


def test_a_stopped_run_says_how_to_go_on_and_goes_on(tmp_path, tiny_model, training_file, capsys):
    job = manifest(tiny_model, training_file, hyperparameters={**QUICK, "nEpochs": 3})
    run = LocalRun(write_manifest(tmp_path / "job.yaml", job), tmp_path / "out", None, {}, {})
    stopping = Event()
    stopping.set()
    assert run.run(stopping) == 3
    assert "run the same command again to go on" in capsys.readouterr().err
    assert run.run(Event()) == 0
    assert len(metrics_rows(tmp_path / "out" / "metrics.jsonl")) == 6
