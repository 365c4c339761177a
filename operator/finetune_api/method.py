"""The objective and what is trained: the two unions of the spec, each a `type` and one block per type."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import Field

from finetune_api.base import ApiModel, Integer, Matching, Number, Rule

DEFAULT_BETA = 0.1
DEFAULT_LORA_RANK = 16
ALL_LINEAR = "all-linear"


class MethodType(StrEnum):
    """What the loss compares."""

    SFT = "SFT"
    DPO = "DPO"


class Dpo(ApiModel):
    """Options of direct preference optimisation."""

    beta: Annotated[Number, Field(gt=0, le=100)] | None = None
    """How strongly the policy is held to its reference (the starting weights). 0.05 to 0.9 is usual: lower updates
    more aggressively towards the preferred answers, higher stays closer to the reference. Absent = 0.1."""


class TrainingMethod(ApiModel):
    """The objective. Only the block named by `type` may be set."""

    type: MethodType = MethodType.SFT
    """SFT learns the answers; DPO learns to prefer one answer over another."""
    dpo: Dpo | None = None
    """Options of DPO."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            message="dpo.beta is only supported for DPO training",
            cel="self.type == 'DPO' || !has(self.dpo) || !has(self.dpo.beta)",
            holds=lambda m: m.type is MethodType.DPO or m.dpo is None or m.dpo.beta is None,
        ),
    )

    @property
    def beta(self) -> float:
        """Beta as used: the given one, else the default."""
        return self.dpo.beta if self.dpo and self.dpo.beta is not None else DEFAULT_BETA


class TrainingKind(StrEnum):
    """Which weights move."""

    LORA = "LoRA"
    FULL = "Full"


ModuleName = Annotated[
    str,
    Matching("trainableModules must hold names of modules such as q_proj or all-linear", r"^[A-Za-z0-9_.-]+$", 128),
]


class Lora(ApiModel):
    """Options of low-rank adaptation. Absent values are taken from the runtime, then from the defaults named here."""

    rank: Annotated[Integer, Field(ge=1, le=1024)] | None = None
    """Rank of the update. Absent = the runtime's default rank for the model, else its maximum, else 16."""
    alpha: Annotated[Number, Field(gt=0, le=8192)] | None = None
    """Scale of the update is alpha / rank. Absent = 2 * rank."""
    dropout: Annotated[Number, Field(ge=0, lt=1)] | None = None
    """Dropout on the adapter's input, in training only. Absent = 0."""
    trainable_modules: Annotated[tuple[ModuleName, ...], Field(min_length=1, max_length=64)] | None = None
    """Names of the linear layers that get an adapter; `all-linear` is every one but the head. Absent = [all-linear]."""


class TrainingType(ApiModel):
    """Adapter or all weights. The lora block may only be set with type LoRA."""

    type: TrainingKind = TrainingKind.LORA
    """LoRA trains a small adapter on frozen weights; Full trains every weight."""
    lora: Lora | None = None
    """Options of LoRA."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            message="LoRA parameters are set for full fine-tuning",
            cel="self.type == 'LoRA' || !has(self.lora) || (!has(self.lora.rank) && !has(self.lora.alpha)"
            " && !has(self.lora.dropout) && !has(self.lora.trainableModules))",
            holds=lambda t: t.type is TrainingKind.LORA or t.lora is None or t.lora == Lora(),
        ),
    )
