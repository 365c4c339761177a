"""README.md of what is published: how to load it, how good it is, and everything that it was made from.

The front matter is that of a model card on the Hugging Face Hub, so that a folder can be pushed there as it is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from importlib.metadata import version
from typing import Any

from finetune_api.method import MethodType, TrainingMethod
from finetune_api.names import METRICS_FILE, REPORT_FILE
from finetune_api.trainer import TrainerConfig
from finetune_api.uris import parse_uri

MERGE_ERROR = "mergeError"
"""Metric of merged weights: |merged - adapted| / |adapted - base|, on logits."""
LIBRARIES = ("finetune-operator", "torch", "transformers", "peft")
PAPERS = {"DPO": "arXiv:2305.18290", "SimPO": "arXiv:2405.14734", "RPO": "arXiv:2404.19733"}


class Kind(Enum):
    """What a folder holds: its name for people, its library and its relation to the base, in words of the Hub."""

    ADAPTER = ("LoRA adapter", "peft", "adapter")
    MODEL = ("Model", "transformers", "finetune")
    MERGED = ("LoRA adapter merged into its base", "transformers", "finetune")


@dataclass(frozen=True, slots=True)
class Card:
    """What the cards of one run have in common."""

    config: TrainerConfig
    base_name: str
    """Hub id of the base, else its URI."""
    base_revision: str | None
    digests: Mapping[str, str]
    """SHA-256 of the data files by field."""
    vision: bool = False
    """The model takes images."""

    def text(self, kind: Kind, step: int, metrics: Mapping[str, float]) -> str:
        """The card of the weights after optimiser step `step`.

        Args:
            metrics: by name of the status: the newest evaluation, and mergeError of merged weights.
        """
        what, _, _ = kind.value
        parts = [
            "---",
            *(f"{key}: {json.dumps(value)}" for key, value in self._front(kind).items()),
            "---",
            "",
            f"# {self.config.job.name}",
            "",
            f"{what} after step {step} of {method_name(self.config.training_method)}, on {self.base_name}, trained by"
            " finetune-operator. The licence of the base model holds.",
            "",
            *_section("Use", ['"." is this folder.', "", "```python", *self._loading(kind), "```"]),
            *_section("Metrics", self._metrics(metrics)),
            *_section("Provenance", ["```json", json.dumps(self.made_from(), indent=2), "```"]),
        ]
        return "\n".join(parts)

    def _front(self, kind: Kind) -> dict[str, Any]:
        _, library, relation = kind.value
        on_hub = self.config.start.model.startswith("hf://")
        base = {"base_model": self.base_name, "base_model_relation": relation} if on_hub else {}
        files = (self.config.training_file, self.config.validation_file)
        roots = [parse_uri(uri).root for uri in files if uri and uri.startswith("hf://datasets/")]
        sets = sorted({root.removeprefix("datasets/") for root in roots})
        return {
            **base,
            "library_name": library,
            "pipeline_tag": "image-text-to-text" if self.vision else "text-generation",
            **({"datasets": sets} if sets else {}),
            "tags": ["finetune-operator", self.config.training_method.type.value.lower()],
        }

    def _loading(self, kind: Kind) -> list[str]:
        """Python that loads the folder from inside it."""
        model, reader = (
            ("AutoModelForImageTextToText", "Processor") if self.vision else ("AutoModelForCausalLM", "Tokenizer")
        )
        tokenizer = [f'{reader.lower()} = Auto{reader}.from_pretrained(".")']
        imports = f"from transformers import {model}, Auto{reader}"
        if kind is not Kind.ADAPTER:
            return [imports, "", f'model = {model}.from_pretrained(".")', *tokenizer]
        base = json.dumps(self.base_name.removeprefix("file://"))
        revision = f", revision={json.dumps(self.base_revision)}" if self.base_revision else ""
        return [
            "from peft import PeftModel",
            imports,
            "",
            f"base = {model}.from_pretrained({base}{revision})",
            'model = PeftModel.from_pretrained(base, ".")',
            *tokenizer,
        ]

    def _metrics(self, metrics: Mapping[str, float]) -> list[str]:
        rest = f"Those of every step are in `{METRICS_FILE}` of the job's output, and `{REPORT_FILE}` there draws them."
        if not metrics:
            return [f"No evaluation was asked for. {rest}"]
        rows = [f"| {name} | {value:.6g} |" for name, value in sorted(metrics.items())]
        return ["| metric | value |", "|---|---|", *rows, "", f"Of the newest evaluation up to this step. {rest}"]

    def made_from(self) -> dict[str, Any]:
        """The configuration of the run, with the digests and revisions of what it was given."""
        config = self.config
        return {
            "job": config.job.to_json(),
            "start": config.start.to_json() | {"revision": self.base_revision},
            "data": {
                "trainingFile": config.training_file,
                "validationFile": config.validation_file,
                "sha256": dict(self.digests),
                **config.data.model_dump(mode="json", exclude={"chat_template"}),
                "ownChatTemplate": config.data.chat_template is not None,
            },
            "trainingMethod": config.training_method.to_json(),
            "lora": config.lora.to_json() if config.lora else None,
            **({"trainVision": config.train_vision} if self.vision else {}),
            "hyperparameters": config.hyperparameters.to_json() | {"batchSize": config.batch_size},
            "versions": versions(),
        }


def versions() -> dict[str, str]:
    """Of the libraries that computed."""
    return {name: version(name) for name in LIBRARIES}


def method_name(method: TrainingMethod) -> str:
    """The objective by the name of its paper, with what was changed about it; docs/methods.md has the formulas."""
    if method.type is MethodType.SFT:
        return "supervised fine-tuning"
    chosen, name = method.preference, "SimPO"
    if not chosen.gamma:
        kinds = ("length-normalised", chosen.per_token), ("reference-free", chosen.reference_free)
        name = " ".join([*(word for word, holds in kinds if holds), "DPO"])
    name += f" ({PAPERS['SimPO' if chosen.gamma else 'DPO']})"
    if chosen.rpo_alpha:
        name += f" with the RPO term ({PAPERS['RPO']})"
    return name + (" and label smoothing" if chosen.label_smoothing else "")


def _section(title: str, lines: list[str]) -> list[str]:
    return [f"## {title}", "", *lines, ""]
