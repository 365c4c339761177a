"""Whole runs on rows with images: what is learned is in the images, and the rest is as with any rows."""

from __future__ import annotations

import json
from io import BytesIO
from shutil import copytree
from struct import pack
from threading import Event

import pytest
import torch
from peft import PeftModel
from PIL import Image, ImageOps
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from finetune_api.failures import FailureCode
from finetune_trainer.failures import RunFailed
from finetune_trainer.layout import Layout
from finetune_trainer.out.facts import read_facts
from finetune_trainer.prepare import prepare
from finetune_trainer.step import model
from finetune_trainer.step.pixels import ImageProcessor
from pictures import colour_pairs, colour_talks, pair_about, url_of
from runs import Stopping, assert_same, attempt, keep_last_states, prepared, run
from together import assert_alike, outcome, train_together
from training import metrics_rows, preference_rows, trainer_config, write_jsonl

SFT = {"trainingMethod": {"type": "SFT"}}
FULL = {"trainingKind": "Full", "lora": None}
VISION = {"trainVision": True}
METHODS = {
    "DPO LoRA": {},
    "DPO LoRA and vision": VISION,
    "DPO full": FULL,
    "DPO full and vision": FULL | VISION,
    "SFT LoRA and vision": SFT | VISION,
}
RESOLUTION_IN_WORDS = pack(">HHI4s", 0x11A, 2, 4, b"wide")
ROWS, WITHOUT = 7, 3
"""Training rows, and how many of them have no image: some steps have none at all."""


def config_for(base, folder, method, **changes):
    folder.mkdir(exist_ok=True)
    make = colour_talks if method.startswith("SFT") else colour_pairs
    write_jsonl(folder / "train.jsonl", make(ROWS, without=WITHOUT))
    write_jsonl(folder / "validation.jsonl", make(5, seed=1, without=1))
    fields = {
        "validationFile": f"file://{folder}/validation.jsonl",
        "evaluation": {"nEvals": 2},
        "batchSize": 2,
        "hyperparameters": {"nEpochs": 2, "learningRate": 1e-3, "seed": 7},
        **METHODS[method],
        **changes,
    }
    return prepared(trainer_config(base, folder, **fields))


def test_the_colour_in_an_image_is_learned(vision_model, tmp_path):
    write_jsonl(tmp_path / "train.jsonl", colour_pairs(48))
    write_jsonl(tmp_path / "validation.jsonl", colour_pairs(24, seed=1))
    hyper = {"nEpochs": 6, "learningRate": 3e-3, "seed": 7}
    fields = {"validationFile": f"file://{tmp_path}/validation.jsonl", "evaluation": {"nEvals": 1}}
    config = trainer_config(vision_model, tmp_path, hyperparameters=hyper, batchSize=8, **VISION, **fields)
    report = run(prepared(config))
    [before, after] = [row for row in metrics_rows(Layout.of(config).metrics) if "eval/loss" in row]
    assert before["eval/rewards/accuracies"] < 0.7
    assert after["eval/rewards/accuracies"] > 0.9, "held-out images, whose colour nothing but the image tells"
    assert [warning.reason for warning in report.warnings if warning.reason == "SharedPrefixOff"] == ["SharedPrefixOff"]


@pytest.mark.parametrize("method", METHODS)
def test_stopped_and_resumed_it_is_the_same_run(vision_model, tmp_path, method, monkeypatch):
    keep_last_states(monkeypatch)
    whole, again = (
        config_for(vision_model, tmp_path / "data", method, outputUri=f"file://{tmp_path}/{name}")
        for name in ("whole", "again")
    )
    asked = Stopping(10**9)
    assert attempt(whole, asked) == 0
    assert attempt(again, Stopping(2 * (10**9 - asked.left) // 3)) is FailureCode.STOPPED
    resumed = attempt(again, Event())
    assert isinstance(resumed, int)
    assert resumed > 0
    assert_same(Layout.of(again).output, Layout.of(whole).output)


@pytest.mark.parametrize(
    ("method", "spread"),
    [*((method, False) for method in METHODS), ("DPO LoRA", True), ("DPO LoRA and vision", True)],
    ids=[*METHODS, "DPO LoRA, base spread", "DPO LoRA and vision, base spread"],
)
def test_two_processes_train_as_one(vision_model, tmp_path, method, spread, monkeypatch):
    alone, both = (config_for(vision_model, tmp_path / name, method) for name in ("alone", "both"))
    run(alone)
    if spread:
        monkeypatch.setattr(model, "most_frozen", lambda device: 0)

    assert train_together(both, 2) == [0, 0]
    assert_alike(outcome(both), outcome(alone))


def test_the_result_loads_where_anybody_loads_it(vision_model, tmp_path):
    merged = config_for(vision_model, tmp_path / "lora", "DPO LoRA and vision", merge=True)
    full = config_for(vision_model, tmp_path / "full", "DPO full")
    run(merged)
    run(full)
    out = Layout.of(merged)
    adapted = PeftModel.from_pretrained(AutoModelForImageTextToText.from_pretrained(vision_model), out.final)
    assert any("visual" in name for name, _ in adapted.named_parameters() if "lora_B" in name)
    for folder in (out.final, out.merged, Layout.of(full).final):
        assert ImageProcessor(folder) is not None
    AutoModelForImageTextToText.from_pretrained(out.merged)
    base, trained = (load_file(folder / "model.safetensors") for folder in (vision_model, Layout.of(full).final))
    moved = {name for name, tensor in trained.items() if not torch.equal(tensor, base[name])}
    assert moved
    assert all("visual" not in name for name in moved)
    assert set(base) == set(trained)


def test_an_adapter_goes_on_as_it_is(vision_model, tmp_path):
    first = config_for(vision_model, tmp_path / "first", "DPO LoRA")
    run(first)
    start = {"model": f"file://{vision_model}", "adapter": f"file://{Layout.of(first).final}"}
    run(config_for(vision_model, tmp_path / "second", "DPO LoRA", start=start))
    asked = config_for(vision_model, tmp_path / "third", "DPO LoRA and vision", start=start)
    with pytest.raises(RunFailed, match="no layers in the vision encoder"):
        run(asked)


def test_odd_entries_about_the_camera_are_no_matter(vision_model, tmp_path):
    head, entries = b"Exif\0\0MM\0*" + pack(">IH", 8, 2), (pack(">HHIHH", 0x112, 3, 1, 6, 0), RESOLUTION_IN_WORDS)
    file = BytesIO()
    Image.new("RGB", (24, 16), "red").save(file, "JPEG", exif=head + b"".join(entries) + bytes(4))
    with pytest.raises(TypeError):
        ImageOps.exif_transpose(Image.open(BytesIO(file.getvalue())))
    rows = [pair_about(url_of(file.getvalue(), "JPEG"), f"Row {number}?") for number in range(4)]
    write_jsonl(tmp_path / "train.jsonl", rows)
    report = run(prepared(trainer_config(vision_model, tmp_path)))
    assert report.checkpoints


def test_named_modules_without_any_in_the_encoder_are_refused(vision_model, tmp_path):
    named = {"rank": 4, "alpha": 8, "dropout": 0, "trainableModules": ["q_proj"]}
    with pytest.raises(RunFailed, match="names no layer of the vision encoder"):
        run(config_for(vision_model, tmp_path, "DPO LoRA and vision", lora=named))


def test_a_text_model_has_nothing_to_train_there(tiny_model, tmp_path):
    write_jsonl(tmp_path / "train.jsonl", preference_rows(4))
    with pytest.raises(RunFailed) as end:
        prepare(trainer_config(tiny_model, tmp_path, **VISION), lambda **_fields: None)
    assert end.value.failure.code is FailureCode.NO_VISION_ENCODER
    assert str(tiny_model) in end.value.failure.sentence


def test_status_and_report_tell_of_images_and_hold_no_heap_of_tokens(vision_model, tmp_path):
    config = config_for(vision_model, tmp_path, "DPO LoRA")
    prepared_file = json.loads((Layout.of(config).prepared / "prepared.json").read_text())
    assert prepared_file["data"]["images"] == ROWS - WITHOUT
    run(config)
    samples = read_facts(Layout.of(config).output).samples
    assert max(sample.prompt.text.count("<|image|>") for sample in samples) == 1
    assert [len(sample.images) for sample in samples] == [1, 1, 1, 1, 0]
    page = (Layout.of(config).output / "report.html").read_text()
    assert page.count('<img src="data:image/webp;base64,') == 4
    assert f"<dd>{ROWS - WITHOUT}</dd>" in page.partition("images in them")[2][:40]
    card = (Layout.of(config).final / "README.md").read_text()
    assert "AutoModelForImageTextToText.from_pretrained" in card
    assert "AutoProcessor" in card
    assert "AutoModelForCausalLM" not in card


def test_dropouts_of_a_models_parts_come_back(vision_model, tmp_path):
    folder = copytree(vision_model, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["attention_dropout"] = 0.1
    (folder / "config.json").write_text(json.dumps(config))
    trained = config_for(folder, tmp_path / "run", "DPO full")
    run(trained)
    first = next(row for row in metrics_rows(Layout.of(trained).metrics) if "train/loss" in row)
    assert first["train/loss"] == pytest.approx(0.6931, abs=1e-4), "no dropout in training"
    published = json.loads((Layout.of(trained).final / "config.json").read_text())
    assert published["text_config"]["attention_dropout"] == 0.1
