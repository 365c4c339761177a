"""Floating-point operations of an optimiser step, from a model's shape: matrix products alone, two for each number.

Attention counts as PyTorch counts it: every query with every key that its sequence has, seen or not, and its backward
pass two and a half times as much as its forward pass.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from finetune_trainer.cost.memory import Training
from finetune_trainer.data.shape import Input, Linear

FORWARD, BY_INPUT, BY_WEIGHT = 2, 2, 2
"""Operations for each weight and token."""
ATTENTION, ATTENTION_BACKWARD = 4, 10
"""Operations for each number of a query and key."""


@dataclass(frozen=True, slots=True)
class Work:
    """What is computed, in numbers of tokens."""

    tokens: int
    targets: int
    meetings: int
    """Queries times the keys that they may see, of every sequence or part of one."""


def training_flops(training: Training, work: Work, *, checkpointing: bool = False) -> int:
    """Forward and backward pass; with `checkpointing` most of the forward pass twice."""
    shape = training.shape
    layers = shape.layers * (_linears(training) + _experts(training))
    attention = shape.layers * shape.queries * work.meetings * (ATTENTION + ATTENTION_BACKWARD)
    head = shape.embedding * (FORWARD + BY_INPUT + (FORWARD + BY_WEIGHT if training.lora is None else 0))
    changed = _again(training, work) if checkpointing else -work.tokens * _not_needed(training)
    return work.tokens * layers + attention + work.targets * head + changed


def scoring_flops(training: Training, work: Work) -> int:
    """A forward pass alone."""
    shape = training.shape
    per_layer = sum(_weights(training, linear) for linear in shape.linears) + _active(training)
    attention = shape.layers * shape.queries * work.meetings * ATTENTION
    return FORWARD * (work.tokens * shape.layers * per_layer + work.targets * shape.embedding) + attention


def _again(training: Training, work: Work) -> int:
    """The layers' forward pass once more, up to the last tensor that a layer's backward pass wants."""
    last = [linear for linear in training.shape.linears if linear.read is Input.PRODUCT]
    rank = training.lora.rank if training.lora else None
    left_out = sum(linear.outputs * (linear.inputs if rank is None else rank) for linear in last)
    skipped = FORWARD * work.tokens * training.shape.layers * left_out
    return scoring_flops(training, replace(work, targets=0)) - skipped


def _linears(training: Training) -> int:
    """Of a layer, for a token; the weights of an adapter get gradients, and without one all do."""
    full = training.lora is None
    total = 0
    for linear in training.shape.linears:
        own = linear.inputs * linear.outputs
        trained = own if full else _weights(training, linear) - own
        total += (FORWARD + BY_INPUT) * _weights(training, linear) + BY_WEIGHT * trained
    return total


def _experts(training: Training) -> int:
    passes = FORWARD + BY_INPUT + (BY_WEIGHT if training.lora is None else 0)
    return passes * _active(training)


def _active(training: Training) -> int:
    """Weights of experts that a token passes in a layer."""
    experts = training.shape.experts
    return 3 * experts.active * experts.width * training.shape.hidden if experts else 0


def _not_needed(training: Training) -> int:
    """Nothing before the first layer is trained with an adapter, so that what it reads gets no gradient."""
    if training.lora is None:
        return 0
    reading = [linear for linear in training.shape.linears if linear.read is Input.ATTENTION]
    adapters = sum(linear.inputs * training.lora.rank for linear in reading if linear in training.kept)
    return BY_INPUT * (adapters + sum(linear.inputs * linear.outputs for linear in reading))


def _weights(training: Training, linear: Linear) -> int:
    """Its own and those of its adapter."""
    rank = training.lora.rank if training.lora and linear in training.kept else 0
    return linear.inputs * linear.outputs + rank * (linear.inputs + linear.outputs)
