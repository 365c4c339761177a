"""The figures of a run as the trainer reports them and the status shows them: how far, how well, and what is saved."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StringConstraints

from finetune_api.base import ApiModel, Integer, Number, Time

MAX_METRICS = 32


class Progress(ApiModel):
    """How far training is."""

    display: Annotated[str, StringConstraints(max_length=32)]
    """Step of total steps, for people."""
    step: Integer
    """Optimiser steps done."""
    total_steps: Integer
    """Optimiser steps of the whole job."""
    epoch: Number = 0.0
    """Passes over the data so far."""
    percentage: Integer = 0
    """Share of the steps done."""
    tokens: Integer = 0
    """Tokens trained on so far."""
    tokens_per_second: Number | None = None
    """Recent speed."""
    estimated_remaining_seconds: Integer | None = None
    """Seconds to the last step at recent speed."""
    last_report_time: Time | None = None
    """When the operator last heard from the pod."""


class Recovery(ApiModel):
    """The newest complete state from which training goes on exactly."""

    step: Integer
    """Its step."""
    time: Time
    """When it was saved."""


MetricName = Annotated[str, StringConstraints(max_length=64)]
MetricValues = Annotated[dict[MetricName, float], Field(max_length=MAX_METRICS)]


class Metrics(ApiModel):
    """The latest values, by the names of the metric table."""

    train: MetricValues = Field(default_factory=dict)
    """Of the latest optimiser step."""
    eval: MetricValues = Field(default_factory=dict)
    """Of the latest evaluation."""
