"""The same training twice: by our own path, prepare to metrics.jsonl, and by TRL; loss and gradient norm per step."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from finetune_api.trainer import Stage, TrainerConfig
from finetune_trainer.data.tokens import Pair, open_cache
from finetune_trainer.layout import Layout
from finetune_trainer.out.progress import Reporter
from finetune_trainer.prepare import prepare
from finetune_trainer.run.train import train
from finetune_trainer.step.packing import permutation
from training import load, metrics_rows, trainer_config, write_jsonl

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"  # CPOTrainer is where TRL keeps SimPO

BATCH, STEPS, SEED = 4, 20, 7
RATE = 5e-3


@dataclass(frozen=True)
class Step:
    """What a trainer says of one optimiser step."""

    loss: float
    grad_norm: float


@dataclass(frozen=True)
class Task:
    """A model, rows and one of our objectives; TRL gets the rows in the order in which ours takes them."""

    model: Path
    folder: Path
    rows: list[dict]
    options: dict
    kind: str = "LoRA"

    @property
    def config(self) -> TrainerConfig:
        """Our configuration: 20 steps with warm-up, cosine, decay and clipping."""
        hyper = {"nEpochs": 1, "learningRate": RATE, "seed": SEED, "warmupRatio": 0.1, "weightDecay": 0.01}
        return trainer_config(
            self.model,
            self.folder,
            trainingMethod={"type": "DPO", "dpo": self.options},
            batchSize=BATCH,
            hyperparameters=hyper,
            **({} if self.kind == "LoRA" else {"trainingKind": "Full", "lora": None}),
        )

    @property
    def ordered(self) -> list[dict]:
        """The rows as TRL takes them, in our order."""
        order = permutation(len(self.rows), SEED, 0).tolist()
        return [
            {
                "prompt": self.rows[row]["input"]["messages"],
                "chosen": self.rows[row]["preferred_output"],
                "rejected": self.rows[row]["non_preferred_output"],
            }
            for row in order
        ]


def our_steps(task: Task) -> tuple[list[Step], list[Pair]]:
    """Our steps and our pairs, both in the order of training."""
    write_jsonl(task.folder / "train.jsonl", task.rows)
    layout = Layout.of(task.config)
    prepare(task.config, lambda **_fields: None)
    cache = open_cache(layout.prepared / "train")
    pairs = [cache.pair(row) for row in permutation(len(task.rows), SEED, 0).tolist()]
    train(task.config, Reporter(task.config.job, Stage.TRAIN, "pod-1"), Event())
    lines = metrics_rows(layout.metrics)
    return [Step(line["train/loss"], line["train/grad_norm"]) for line in lines], pairs


def dpo_steps(task: Task, **options: object) -> list[Step]:
    """TRL's DPOTrainer on the same task; `options` are DPOConfig's."""
    from trl import DPOConfig, DPOTrainer

    args = DPOConfig(**_arguments(task), max_length=None, model_init_kwargs={"dtype": "float32"}, **options)
    return _steps(DPOTrainer(model=str(task.model), args=args, **_material(task)), task)


def cpo_steps(task: Task, **options: object) -> list[Step]:
    """TRL's CPOTrainer on the same task; `options` are CPOConfig's."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    args = CPOConfig(**_arguments(task), max_length=2048, remove_unused_columns=False, **options)
    model = AutoModelForCausalLM.from_pretrained(task.model, dtype="float32")
    tokenizer = AutoTokenizer.from_pretrained(task.model)
    return _steps(CPOTrainer(model=model, args=args, processing_class=tokenizer, **_material(task)), task)


def _arguments(task: Task) -> dict:
    """The same optimisation, in the names of transformers' TrainingArguments."""
    return {
        "output_dir": str(task.folder / "trl"),
        "per_device_train_batch_size": BATCH,
        "num_train_epochs": 1,
        "learning_rate": RATE,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 2,
        "weight_decay": 0.01,
        "max_grad_norm": 1.0,
        "optim": "adamw_torch",
        "train_sampling_strategy": "sequential",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "bf16": False,
        "activation_checkpointing": False,
        "dataloader_pin_memory": False,
        "disable_tqdm": True,
    }


def _material(task: Task) -> dict:
    from datasets import Dataset
    from peft import LoraConfig

    lora = task.config.lora
    if lora is None:
        return {"train_dataset": Dataset.from_list(task.ordered)}
    config = LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    return {"train_dataset": Dataset.from_list(task.ordered), "peft_config": config}


def _steps(trainer: object, task: Task) -> list[Step]:
    """Train from our own starting weights."""
    import torch

    if task.config.lora is not None:
        ours = load(task.model, lora=task.config.lora, seed=SEED).root.state_dict()
        theirs = trainer.model.state_dict()
        adapter = {name: value for name, value in ours.items() if "lora_" in name}
        assert adapter.keys() == {name for name in theirs if "lora_" in name}
        with torch.no_grad():
            for name, value in adapter.items():
                theirs[name].copy_(value)
    trainer.train()
    return [Step(log["loss"], log["grad_norm"]) for log in trainer.state.log_history if "loss" in log]
