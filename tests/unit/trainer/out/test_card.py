"""The model card: valid for the Hub, true about its origin, and with code that loads the folder it lies in."""

from __future__ import annotations

import json

import pytest
from ruamel.yaml import YAML

from finetune_api.method import TrainingMethod
from finetune_trainer.out.card import Card, Kind, method_name
from training import load, lora, trainer_config


def card(tmp_path, base="file:///models/tiny", name="file:///models/tiny", revision=None, **changes):
    config = trainer_config(tmp_path / "model", tmp_path, start={"model": base, "sha256": "ab"}, **changes)
    return Card(config, name, revision, {"trainingFile": "d1"})


def front(text):
    return YAML(typ="safe").load(text.split("---\n")[1])


def block(text, language):
    return text.split(f"```{language}\n")[1].split("```")[0]


def test_the_front_matter_is_that_of_the_hub(tmp_path):
    of_hub = {"base": "hf://org/name@abc", "name": "org/name", "revision": "abc"}
    made = card(tmp_path, **of_hub, trainingFile="hf://datasets/org/pairs@main/train.jsonl")
    relations = {
        kind: (f["base_model_relation"], f["library_name"]) for kind in Kind if (f := front(made.text(kind, 1, {})))
    }
    assert relations == {
        Kind.ADAPTER: ("adapter", "peft"),
        Kind.MODEL: ("finetune", "transformers"),
        Kind.MERGED: ("finetune", "transformers"),
    }
    found = front(made.text(Kind.ADAPTER, 1, {}))
    assert (found["base_model"], found["datasets"], found["pipeline_tag"]) == (
        "org/name",
        ["org/pairs"],
        "text-generation",
    )


def test_a_base_that_is_not_on_the_hub_is_no_base_model_of_the_hub(tmp_path):
    assert (
        not {"base_model", "base_model_relation", "datasets"} & front(card(tmp_path).text(Kind.ADAPTER, 1, {})).keys()
    )


def test_the_card_tells_what_the_weights_were_made_from(tmp_path):
    text = card(tmp_path, revision="abc123", data={"chatTemplate": "{{ messages }}"}).text(Kind.ADAPTER, 7, {})
    made_from = json.loads(block(text, "json"))
    assert made_from["start"] == {"model": "file:///models/tiny", "sha256": "ab", "revision": "abc123"}
    assert (made_from["data"]["sha256"], made_from["data"]["ownChatTemplate"]) == ({"trainingFile": "d1"}, True)
    assert "messages" not in text, "the template is a file of its own"
    assert made_from["trainingMethod"]["dpo"]["beta"] == 0.1
    assert made_from["hyperparameters"]["batchSize"] == 4
    assert made_from["versions"].keys() == {"finetune-operator", "torch", "transformers", "peft"}
    assert "LoRA adapter after step 7 of DPO (arXiv:2305.18290)" in text


def test_metrics_are_a_table(tmp_path):
    made = card(tmp_path)
    assert "| evalLoss | 0.25 |" in made.text(Kind.ADAPTER, 1, {"evalLoss": 0.25})
    assert "`report.html` there draws them" in made.text(Kind.ADAPTER, 1, {"evalLoss": 0.25})
    assert "No evaluation was asked for." in made.text(Kind.ADAPTER, 1, {})


@pytest.mark.parametrize(
    ("method", "name"),
    [
        ({"type": "SFT"}, "supervised fine-tuning"),
        ({"type": "DPO"}, "DPO (arXiv:2305.18290)"),
        (
            {"type": "DPO", "dpo": {"normalizeLogratiosByLength": True, "referenceFree": True}},
            "length-normalised reference-free DPO (arXiv:2305.18290)",
        ),
        (
            {"type": "DPO", "dpo": {"simpoGamma": 0.5, "rpoAlpha": 1, "labelSmoothing": 0.1}},
            "SimPO (arXiv:2405.14734) with the RPO term (arXiv:2404.19733) and label smoothing",
        ),
    ],
)
def test_the_objective_has_its_name(method, name):
    assert method_name(TrainingMethod.model_validate(method)) == name


@pytest.mark.parametrize("kind", list(Kind))
def test_the_code_of_the_card_loads_the_folder_it_lies_in(tiny_model, tmp_path, monkeypatch, kind):
    folder = tmp_path / "published"
    folder.mkdir()
    load(tiny_model, lora=lora() if kind is Kind.ADAPTER else None).saving()(folder)
    for file in tiny_model.glob("*token*"):
        (folder / file.name).write_bytes(file.read_bytes())
    uri = f"file://{tiny_model}"
    monkeypatch.chdir(folder)
    names = {}
    exec(block(card(tmp_path, base=uri, name=uri).text(kind, 1, {}), "python"), names)
    line = names["tokenizer"]("red green", return_tensors="pt").input_ids
    assert names["model"](input_ids=line).logits.shape == (1, line.shape[1], 320)
