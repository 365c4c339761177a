"""The objective and what is trained: the two unions of the spec, each a `type` and one block per type."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import Field
from pydantic.alias_generators import to_camel

from finetune_api.base import ApiModel, Below, Flag, Integer, Matching, Number, Rule

DEFAULT_BETA = 0.1
DEFAULT_LORA_RANK = 16
ALL_LINEAR = "all-linear"


class MethodType(StrEnum):
    """What the loss compares."""

    SFT = "SFT"
    DPO = "DPO"


class TrainOnInputs(StrEnum):
    """Which tokens of a conversation are trained on."""

    AUTO = "Auto"
    ALWAYS = "Always"
    NEVER = "Never"


class Sft(ApiModel):
    """Options of supervised fine-tuning."""

    train_on_inputs: TrainOnInputs | None = None
    """Auto trains on the assistant's messages, on the completion, or on all of a `text` row; Always on every token but
    the first; Never on answers alone, and refuses `text` rows, which have none. Absent = Auto."""


_LABEL_SMOOTHING = Below("labelSmoothing must be at least 0 and below 0.5", 0.5)


class Dpo(ApiModel):
    """Options of direct preference optimisation and its relatives; docs/methods.md has the formulas."""

    beta: Annotated[Number, Field(gt=0, le=100)] | None = None
    """How strongly the policy is held to its reference (the starting weights). 0.05 to 0.9 is usual: lower updates
    more aggressively towards the preferred answers, higher stays closer to the reference; per token (SimPO or
    normalizeLogratiosByLength) 2 to 10 is usual. Absent = 0.1."""
    normalize_logratios_by_length: Flag | None = None
    """Divide the log-ratio of each answer by its number of tokens. Absent = false."""
    rpo_alpha: Annotated[Number, Field(ge=0, le=100)] | None = None
    """Weight of the negative log-likelihood per token of the preferred answer, added to the loss (RPO). Absent = 0."""
    simpo_gamma: Annotated[Number, Field(ge=0, le=100)] | None = None
    """Margin that the reward of the preferred answer is to win by (SimPO). Above 0 it turns on the division by length
    and drops the reference. It is absolute, not a multiple of beta. Absent = 0."""
    reference_free: Flag | None = None
    """Compare log-probabilities themselves instead of their ratio to the reference. Absent = false."""
    label_smoothing: Annotated[Number, Field(ge=0, le=1), _LABEL_SMOOTHING] | None = None
    """Share of pairs that are taken to be labelled the wrong way round. Absent = 0."""


@dataclass(frozen=True, slots=True)
class Preference:
    """What DPO's options come to: absent values filled in, and what one of them turns on for another."""

    beta: float = DEFAULT_BETA
    per_token: bool = False
    """Log-probabilities of an answer are divided by its number of tokens."""
    reference_free: bool = False
    """No reference is scored or compared with."""
    gamma: float = 0.0
    """Margin that the preferred answer is to win by."""
    rpo_alpha: float = 0.0
    """Weight of the preferred answer's negative log-likelihood."""
    label_smoothing: float = 0.0


def _only_for(method: MethodType, block: str, field: str, message: str) -> Rule:
    """`block.field` may only be set, be it to zero, under `method`."""
    name = to_camel(field)

    def holds(chosen: TrainingMethod) -> bool:
        given = getattr(chosen, block)
        return chosen.type is method or given is None or getattr(given, field) is None

    cel = f"self.type == '{method}' || !has(self.{block}) || !has(self.{block}.{name})"
    return Rule(message=message.format(name), cel=cel, holds=holds)


class TrainingMethod(ApiModel):
    """The objective. Only the block named by `type` may be set."""

    type: MethodType = MethodType.SFT
    """SFT learns the answers; DPO learns to prefer one answer over another."""
    sft: Sft | None = None
    """Options of SFT."""
    dpo: Dpo | None = None
    """Options of DPO."""

    rules: ClassVar[tuple[Rule, ...]] = (
        *(_only_for(MethodType.SFT, "sft", f, "{} is only supported for SFT training") for f in Sft.model_fields),
        *(_only_for(MethodType.DPO, "dpo", f, "dpo.{} is only supported for DPO training") for f in Dpo.model_fields),
    )

    @property
    def train_on_inputs(self) -> TrainOnInputs:
        """The given choice, else Auto."""
        return (self.sft or Sft()).train_on_inputs or TrainOnInputs.AUTO

    @property
    def preference(self) -> Preference:
        """DPO's options as they are used. A margin makes it SimPO: per token, and without a reference."""
        given = self.dpo or Dpo()
        gamma = given.simpo_gamma or 0.0
        return Preference(
            beta=DEFAULT_BETA if given.beta is None else given.beta,
            per_token=gamma > 0 or bool(given.normalize_logratios_by_length),
            reference_free=gamma > 0 or bool(given.reference_free),
            gamma=gamma,
            rpo_alpha=given.rpo_alpha or 0.0,
            label_smoothing=given.label_smoothing or 0.0,
        )


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
    """Names of the linear layers that get an adapter; `all-linear` is every one but the head and, in mixtures of
    experts, routers and the layers that bear a name of fused experts. Absent = [all-linear]."""


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
