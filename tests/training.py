"""A tiny model, small preference data and the configurations that train on them, for tests of the trainer."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import torch

from finetune_api.method import TrainingKind
from finetune_api.trainer import LoraConfig, TrainerConfig
from finetune_trainer.step.model import Policy, load_policy
from finetune_trainer.step.weights import StartFolders

WORDS = ("red green blue small large quick slow warm cold bright dark old new soft loud calm").split()  # noqa: SIM905
SHARED_DATA_ENV = "FINETUNE_SHARED_DATA"


def sentence(words: random.Random, least: int, most: int) -> str:
    return " ".join(words.choice(WORDS) for _ in range(words.randint(least, most)))


def preference_rows(count: int, seed: int = 0) -> list[dict]:
    """Rows whose answers differ in length and words."""
    words = random.Random(seed)
    return [
        {
            "input": {"messages": [{"role": "user", "content": f"{number}: {sentence(words, 1, 6)}?"}]},
            "preferred_output": [{"role": "assistant", "content": sentence(words, 1, 8)}],
            "non_preferred_output": [{"role": "assistant", "content": sentence(words, 9, 12)}],
        }
        for number in range(count)
    ]


def conversation_rows(count: int, seed: int = 0) -> list[dict]:
    words = random.Random(seed)
    return [
        {
            "messages": [
                {"role": "user", "content": f"{number}: {sentence(words, 1, 6)}?"},
                {"role": "assistant", "content": sentence(words, 1, 8)},
            ]
        }
        for number in range(count)
    ]


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def shared_preferences() -> list[dict]:
    """Real preference rows where this machine has them, else generated ones of the same format."""
    repository = Path(__file__).resolve().parents[1]
    folder = Path(os.environ.get(SHARED_DATA_ENV, repository.parent / "shared" / "data"))
    file = folder / "judge-preferences.jsonl"
    if file.is_file():
        return [json.loads(line) for line in file.read_text().splitlines()]
    return preference_rows(256)


def trainer_config(model: Path, folder: Path, **changes: object) -> TrainerConfig:
    """DPO with a small adapter on `folder`/train.jsonl into `folder`/out; `changes` are JSON fields."""
    document: dict = {
        "job": {"namespace": "ml", "name": "dpo", "uid": "0f1e2d3c-0000-0000-0000-000000000000"},
        "start": {"model": f"file://{model}"},
        "trainingFile": f"file://{folder}/train.jsonl",
        "trainingMethod": {"type": "DPO", "dpo": {"beta": 0.1}},
        "trainingKind": "LoRA",
        "lora": {"rank": 4, "alpha": 8, "dropout": 0, "trainableModules": ["all-linear"]},
        "hyperparameters": {"nEpochs": 2, "learningRate": 1e-2, "seed": 7},
        "batchSize": 4,
        "evaluation": {},
        "checkpointing": {"nCheckpoints": 2, "recoveryPeriodSeconds": 0},
        "outputUri": f"file://{folder}/out",
        "outputName": "",
    }
    return TrainerConfig.model_validate({**document, **changes})


def metrics_rows(path: Path) -> list[dict]:
    """The lines of metrics.jsonl without what depends on the clock."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "train/tokens_per_second"} for row in rows]


def start_folders(model: Path, adapter: Path | None = None) -> StartFolders:
    return StartFolders(model, f"file://{model}", "org/tiny", "main", adapter)


def lora(**changes: object) -> LoraConfig:
    values = {"rank": 4, "alpha": 8.0, "dropout": 0.0, "trainable_modules": ("all-linear",), **changes}
    return LoraConfig.model_validate(values)


def load(model: Path, *, lora: LoraConfig | None = None, adapter: Path | None = None, seed: int = 7) -> Policy:
    """A policy on the CPU: an adapter when `lora` is given, else all weights."""
    kind = TrainingKind.LORA if lora else TrainingKind.FULL
    return load_policy(start_folders(model, adapter), kind, lora, seed, torch.device("cpu"))


def disturb(policy: Policy, scale: float = 0.05) -> None:
    """Move the trainable weights away from where they started."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in policy.trainable.values():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))


def manifest(model: Path, training_file: Path, name: str = "dpo", /, **spec: object) -> dict:
    """A FineTuneJob for `finetune-train local`; `spec` replaces fields."""
    return {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": name},
        "spec": {
            "model": f"file://{model}",
            "trainingFile": f"file://{training_file}",
            "trainingMethod": {"type": "DPO"},
            "trainingType": {"lora": {"rank": 4}},
            **spec,
        },
    }


def write_manifest(path: Path, document: dict) -> Path:
    """A manifest file; JSON is YAML."""
    path.write_text(json.dumps(document))
    return path


def limit_memory(policy: Policy, tokens: int, checkpointed: int | None = None, *, always: bool = False) -> list[int]:
    """Passes with gradients (or all of them) over more than `tokens` tokens run out of memory from now on.

    `checkpointed` is the limit while activations are computed again. Returns a list of the sizes of all passes to come.
    """
    passes: list[int] = []
    forward = policy.backbone.forward

    def limited(*args: object, **kwargs: object) -> object:
        count = kwargs["input_ids"].numel()
        passes.append(count)
        again = policy.base.causal.is_gradient_checkpointing and checkpointed is not None
        if (always or torch.is_grad_enabled()) and count > (checkpointed if again else tokens):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(*args, **kwargs)

    policy.backbone.forward = limited
    return passes


QUICK = {"batchSize": 3, "learningRate": 0.01}
"""Hyperparameters of a job that moves its weights in two steps."""


def local(folder: Path, document: dict, *more: str) -> int:
    """`finetune-train local` on a manifest; the result is in `folder`/out/NAME."""
    from finetune_trainer.__main__ import main

    name = document["metadata"]["name"]
    path = write_manifest(folder / f"{name}.yaml", document)
    return main(["local", str(path), "--output", str(folder / "out" / name), *more])
