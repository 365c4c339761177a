"""The optimisation: what a user may turn, and within which bounds."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from finetune_api.base import ApiModel, Flag, Integer, IntOrString, Number

MAX_BATCH_SIZE = 65536
MAX_EPOCHS = 1000
MAX_LEARNING_RATE = 10
MAX_SEQ_LENGTH = 16777216
DEFAULT_BATCH_SIZE = 32


class LrSchedulerType(StrEnum):
    """Shape of the learning rate after warm-up."""

    COSINE = "Cosine"
    LINEAR = "Linear"


class LrScheduler(ApiModel):
    """How the learning rate falls."""

    type: LrSchedulerType = LrSchedulerType.COSINE
    """Cosine or linear decay."""
    min_lr_ratio: Annotated[Number, Field(ge=0, le=1)] = 0.0
    """Smallest learning rate, as a share of learningRate."""
    num_cycles: Annotated[Number, Field(gt=0, le=100)] = 0.5
    """Waves of the cosine; 0.5 falls once from the peak to the minimum. Not used by Linear."""


def _batch_size(value: int | str) -> bool:
    return value == "max" if isinstance(value, str) else 1 <= value <= MAX_BATCH_SIZE


BatchSize = Annotated[
    int | str,
    IntOrString(
        message=f'batchSize must be "max" or an integer from 1 to {MAX_BATCH_SIZE}',
        cel=f"type(self) == int ? self >= 1 && self <= {MAX_BATCH_SIZE} : self == 'max'",
        holds=_batch_size,
    ),
]


class Hyperparameters(ApiModel):
    """The optimisation."""

    n_epochs: Annotated[Integer, Field(ge=1, le=MAX_EPOCHS)] = 1
    """Passes over the training data."""
    batch_size: BatchSize | None = None
    """Pairs (DPO) or rows (SFT) per optimiser step over all GPUs, or `max`: the runtime's limit for the model and
    method, else 32. How they are split into micro-batches changes nothing in the result. Absent = max."""
    learning_rate: Annotated[Number, Field(gt=0, le=MAX_LEARNING_RATE)] = 1e-5
    """Peak learning rate of AdamW."""
    lr_scheduler: LrScheduler = LrScheduler()
    """How the learning rate falls after warm-up."""
    warmup_ratio: Annotated[Number, Field(ge=0, le=1)] = 0.0
    """Share of all steps over which the learning rate rises from 0."""
    max_grad_norm: Annotated[Number, Field(ge=0, le=1e6)] = 1.0
    """Gradients are clipped to this norm; 0 = off."""
    weight_decay: Annotated[Number, Field(ge=0, le=10)] = 0.0
    """AdamW's weight decay; norms and biases are left out."""
    max_seq_length: Annotated[Integer, Field(ge=8, le=MAX_SEQ_LENGTH)] | None = None
    """Longest sequence in tokens; for DPO each side (prompt + answer) gets all of it. What becomes of longer
    rows, data.overlong says. Absent = the model's own limit."""
    packing: Flag = True
    """Short rows share a micro-batch, as many as fit into memory. False = one row per micro-batch: the same result,
    slower."""
    seed: Annotated[Integer, Field(ge=0, le=2147483647)] = 42
    """Seed of the data order, of a new adapter and of dropout."""
