"""What the trainer tells the operator: one Report, served while it runs and cut into its last word.

The trainer sends codes and numbers; the sentences that people read are rendered from the tables here, so that no
text from a row or an exception can reach a status.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from typing import Annotated, Any

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from finetune_api.base import ApiModel, Integer, Name, Number
from finetune_api.estimate import Estimate
from finetune_api.evaluation import EvaluationMetric
from finetune_api.failures import Failure
from finetune_api.history import History
from finetune_api.status import (
    MAX_CHECKPOINTS,
    MAX_WARNINGS,
    Checkpoint,
    DataStatus,
    JobWarning,
    Metrics,
    OutputStatus,
    Progress,
    Recovery,
    Resolved,
    TrackingStatus,
)
from finetune_api.trainer import Stage


class WarningCode(StrEnum):
    """Kinds of warnings that a run may give."""

    RECOVERY_SKIPPED = "RecoverySkipped"
    """A recovery state was damaged or of another plan; training went on from an older one."""
    MERGE_LOSSY = "MergeLossy"
    """Casting the merged weights to the precision of the base lost much of what was learned."""
    LAST_TURN_ONLY = "LastTurnOnly"
    """Of some conversations only the last answer is trained, as the chat template renders earlier ones anew."""
    STEP_SKIPPED = "StepSkipped"
    """A step changed nothing because its gradient was not finite."""
    FEW_STEPS = "FewSteps"
    """The run has fewer than 50 optimiser steps."""
    CHOSEN_LOGPS_FALLING = "ChosenLogpsFalling"
    """The preferred answers became less likely while the margin grew."""
    TOO_EASY = "TooEasy"
    """Nearly every pair was right before a tenth of the run."""
    NO_LEARNING = "NoLearning"
    """After a third of the run the margin cannot be told from 0."""
    RESUME_REPLANNED = "ResumeReplanned"
    """Micro-batches as they were planned before a restart do not fit any more; they are smaller or slower now."""
    MICRO_BATCH_HALVED = "MicroBatchHalved"
    """Memory ran out in a step, which was done again with smaller micro-batches, and so are all that follow."""
    BETA_LOW = "BetaLow"
    """The loss compares answers per token, and beta is what plain DPO takes."""
    GAMMA_DOMINATES = "GammaDominates"
    """SimPO's margin outweighs what beta makes of a difference per token."""
    SHARED_PREFIX_OFF = "SharedPrefixOff"
    """The model's attention cannot share a pair's prompt, or pack rows, so training is slower; says why."""
    TRACKER_FAILED = "TrackerFailed"
    """A tracker did not get what was measured; training went on without it."""


class EarlyStop(ApiModel):
    """Training ended before its last step, because the evaluations had stopped improving."""

    metric: EvaluationMetric
    """What was watched."""
    step: Integer
    """The last step that was trained."""
    evaluations: Integer
    """Evaluations in a row without improvement."""
    best_step: Integer
    """Step of the best evaluation; 0 where no evaluation had a finite value."""
    best_value: Number | None = None
    """The metric's value there."""


class Report(ApiModel):
    """The state of a run: the body of GET /progress, and, cut to fit, the termination message."""

    job_uid: Name
    """Whose run this is; the operator drops an answer with another."""
    pod_uid: Name | None = None
    """Which pod says it."""
    stage: Stage
    """Prepare or Train."""
    finished: bool = False
    """True in the last word."""
    failure: Failure | None = None
    """Why the run ended, when it did not end well."""
    publishing: bool = False
    """True once training has ended and results are being published."""
    early_stop: EarlyStop | None = None
    """Why training ended before its last step (Train)."""
    resumed_from_step: Integer | None = None
    """Step of the recovery state that this run went on from; 0 = from the start."""
    progress: Progress | None = None
    """How far training is (Train)."""
    metrics: Metrics | None = None
    """The latest values (Train)."""
    history: History | None = None
    """The course of what this process has trained (Train)."""
    checkpoints: Annotated[tuple[Checkpoint, ...], Field(max_length=MAX_CHECKPOINTS)] = ()
    """Published checkpoints, oldest first (Train)."""
    recovery: Recovery | None = None
    """The newest resumable state (Train)."""
    warnings: Annotated[tuple[JobWarning, ...], Field(max_length=MAX_WARNINGS)] = ()
    """What a person should know."""
    data: DataStatus | None = None
    """What was found in the data (Prepare)."""
    resolved: Resolved | None = None
    """What absent values became (Prepare)."""
    estimate: Estimate | None = None
    """What the job will take (Prepare)."""
    output: OutputStatus | None = None
    """Where the results lie (Train, at the end)."""
    tracking: TrackingStatus | None = None
    """Where the run can be looked at (Train)."""

    @model_validator(mode="before")
    @classmethod
    def _integers_fit(cls, data: object) -> object:
        """The API server holds no integer beyond 64 bits: with one in it, no status could ever be written again."""
        if any(not -(2**63) <= number < 2**63 for number in _integers(data)):
            raise PydanticCustomError("integer", "every integer must fit 64 bits")
        return data

    def to_json(self) -> dict[str, Any]:
        """The JSON form on the wire, without default values: an older operator reads what holds nothing new."""
        return self.model_dump(mode="json", exclude_none=True, exclude_defaults=True)


def _integers(value: object) -> Iterator[int]:
    if isinstance(value, int):
        yield value
    elif isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _integers(item)
