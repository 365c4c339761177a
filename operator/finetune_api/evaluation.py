"""Evaluations on the validation file: how many, what they measure, and when no improvement ends a run."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, ClassVar

from pydantic import Field

from finetune_api.base import ApiModel, Integer, Number, Rule
from finetune_api.method import MethodType, Preference, TrainingMethod

MAX_EVALS = 1000


class EvaluationMetric(StrEnum):
    """What an evaluation can measure, by its name in status; which of them one does is for the method to say."""

    LOSS = "loss"
    REWARD_ACCURACY = "rewardAccuracy"
    REWARD_MARGIN = "rewardMargin"
    REWARD_CHOSEN = "rewardChosen"
    REWARD_REJECTED = "rewardRejected"
    LOGPS_CHOSEN = "logpsChosen"
    LOGPS_REJECTED = "logpsRejected"
    KL = "kl"
    KL_CHOSEN = "klChosen"
    KL_REJECTED = "klRejected"
    KL_PER_TOKEN = "klPerToken"
    NLL = "nll"


OF_A_REFERENCE = (
    EvaluationMetric.KL,
    EvaluationMetric.KL_CHOSEN,
    EvaluationMetric.KL_REJECTED,
    EvaluationMetric.KL_PER_TOKEN,
)
HIGHER_IS_BETTER = (
    EvaluationMetric.REWARD_ACCURACY,
    EvaluationMetric.REWARD_MARGIN,
    EvaluationMetric.REWARD_CHOSEN,
    EvaluationMetric.LOGPS_CHOSEN,
)


def measured(method: TrainingMethod) -> frozenset[EvaluationMetric]:
    """What an evaluation under `method` measures."""
    if method.type is MethodType.SFT:
        return frozenset({EvaluationMetric.LOSS})
    absent = set(OF_A_REFERENCE if method.preference.reference_free else ())
    if method.preference.rpo_alpha == 0:
        absent.add(EvaluationMetric.NLL)
    return frozenset(EvaluationMetric) - absent


class Mode(StrEnum):
    """Which values of a metric are better."""

    MIN = "Min"
    MAX = "Max"


class EarlyStopping(ApiModel):
    """Training ends when the evaluations stop improving. An empty block is early stopping with these defaults."""

    metric: EvaluationMetric = EvaluationMetric.LOSS
    """What is watched, and by what the best checkpoint is chosen: any metric of status.metrics.eval that the method
    has."""
    mode: Mode | None = None
    """Min if lower is better, Max if higher is. Absent = Max for rewardAccuracy, rewardMargin, rewardChosen and
    logpsChosen, Min for the others."""
    patience: Annotated[Integer, Field(ge=1, le=MAX_EVALS)] = 2
    """Evaluations in a row without improvement after which training ends."""
    min_delta: Annotated[Number, Field(ge=0, le=1e6)] = 0.0
    """By how much an evaluation must be better than the last improvement to be one itself."""
    warmup_evals: Annotated[Integer, Field(ge=0, le=MAX_EVALS)] = 1
    """Evaluations at the beginning that count neither as an improvement nor against patience. The best checkpoint may
    still be one of theirs."""

    @property
    def higher_is_better(self) -> bool:
        """The given mode, else the metric's own."""
        return self.metric in HIGHER_IS_BETTER if self.mode is None else self.mode is Mode.MAX


class Evaluation(ApiModel):
    """Evaluations on the validation file."""

    n_evals: Annotated[Integer, Field(ge=0, le=MAX_EVALS)] = 0
    """Evaluations, evenly spaced, the last at the end; one more, at step 0, is the baseline. Needs validationFile."""
    early_stopping: EarlyStopping | None = None
    """End training when evaluations stop improving. Absent = off."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            message="Early stopping needs nEvals >= patience + warmupEvals + 1",
            cel="!has(self.earlyStopping)"
            " || self.nEvals >= self.earlyStopping.patience + self.earlyStopping.warmupEvals + 1",
            holds=lambda e: (
                e.early_stopping is None or e.n_evals >= e.early_stopping.patience + e.early_stopping.warmup_evals + 1
            ),
        ),
    )


def _watched(spec: Any) -> EvaluationMetric | None:
    early = spec.evaluation.early_stopping
    return early.metric if early is not None else None


def _preference(spec: Any) -> Preference | None:
    method = spec.training_method
    return method.preference if method.type is MethodType.DPO else None


_OFF = "!has(self.evaluation.earlyStopping)"
_METRIC = "self.evaluation.earlyStopping.metric"
_SFT = "self.trainingMethod.type == 'SFT'"
_DPO = "self.trainingMethod.dpo"
_REFERENCE_FREE = (
    f"has({_DPO}) && ((has({_DPO}.referenceFree) && {_DPO}.referenceFree)"
    f" || (has({_DPO}.simpoGamma) && {_DPO}.simpoGamma > 0.0))"
)
_RPO = f"has({_DPO}) && has({_DPO}.rpoAlpha) && {_DPO}.rpoAlpha > 0.0"
_KL = "[" + ", ".join(f"'{metric}'" for metric in OF_A_REFERENCE) + "]"

METRIC_RULES = (
    Rule(
        message="earlyStopping.metric must be loss for SFT training: its evaluations measure nothing else",
        cel=f"{_OFF} || !({_SFT}) || {_METRIC} == 'loss'",
        holds=lambda s: _preference(s) is not None or _watched(s) in (None, EvaluationMetric.LOSS),
    ),
    Rule(
        message="earlyStopping.metric is a distance from the reference, and simpoGamma or referenceFree does without"
        " one: watch another metric",
        cel=f"{_OFF} || {_SFT} || !({_METRIC} in {_KL}) || !({_REFERENCE_FREE})",
        holds=lambda s: not ((p := _preference(s)) and p.reference_free and _watched(s) in OF_A_REFERENCE),
    ),
    Rule(
        message="earlyStopping.metric nll is measured only where dpo.rpoAlpha is above 0: set it or watch another"
        " metric",
        cel=f"{_OFF} || {_SFT} || {_METRIC} != 'nll' || ({_RPO})",
        holds=lambda s: not ((p := _preference(s)) and p.rpo_alpha == 0 and _watched(s) is EvaluationMetric.NLL),
    ),
)
"""Rules of a JobSpec: what is watched is something that the method measures."""
