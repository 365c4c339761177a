"""Trainer configurations for tests: complete, small, each field replaceable."""

from __future__ import annotations

from finetune_api.trainer import TrainerConfig


def trainer_config(**fields: object) -> TrainerConfig:
    """A LoRA DPO job of two pairs per step; `fields` replace any of it."""
    described: dict[str, object] = {
        "job": {"namespace": "default", "name": "tiny", "uid": "12345678-0000-0000-0000-000000000000"},
        "start": {"model": "file:///models/tiny"},
        "training_file": "file:///data/train.jsonl",
        "training_method": {"type": "DPO"},
        "training_kind": "LoRA",
        "lora": {"rank": 4, "alpha": 8.0, "dropout": 0.0, "trainableModules": ["all-linear"]},
        "hyperparameters": {},
        "batch_size": 2,
        "evaluation": {},
        "checkpointing": {},
        "output_uri": "file:///out",
        "output_name": "default/tiny-12345678",
    }
    return TrainerConfig.model_validate({**described, **fields})
