"""From hidden states to log-probabilities: the model's head on the scored positions alone, in chunks of tokens.

A vocabulary of 150,000 entries makes 600 kB of logits per token, more than everything else in the step, so logits
exist for one chunk at a time. How a token's log-probability changes with its hidden state depends on nothing that comes
later; under a frozen head it is computed in the forward pass, from logits that are there anyway. A head that is trained
needs its logits once more in the backward pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from finetune_trainer.step.precision import computed_in
from finetune_trainer.step.recipe import LOGITS_BYTES


@dataclass(frozen=True, slots=True)
class Head:
    """A model's output projection with what its architecture does to the logits after it."""

    module: nn.Linear
    """From hidden size to vocabulary."""
    scale: float = 1.0
    """Factor of the logits (Cohere, Granite)."""
    softcap: float | None = None
    """softcap * tanh(logits / softcap) (Gemma 2)."""

    @property
    def vocabulary(self) -> int:
        """Entries of the vocabulary."""
        return self.module.out_features

    def logits(self, hidden: Tensor, weight: Tensor) -> Tensor:
        """[tokens, hidden] and the weight in the same precision -> [tokens, vocabulary] in fp32, fp64 from fp64."""
        logits = _product(hidden, weight.t())
        if self.module.bias is not None:
            logits.add_(self.module.bias)
        if self.scale != 1.0:
            logits.mul_(self.scale)
        if self.softcap is not None:
            logits.div_(self.softcap).tanh_().mul_(self.softcap)
        return logits


def sequence_logps(
    hidden: Tensor, head: Head, targets: Tensor, sequence: Tensor, sequences: int, logits_bytes: int = LOGITS_BYTES
) -> Tensor:
    """Sum of the log-probabilities of each sequence's targets.

    Args:
        hidden: the state that predicts each target, [targets, hidden].
        targets: token ids, int64 [targets].
        sequence: the sequence that each target belongs to, int64 [targets].
        sequences: number of sequences.
        logits_bytes: most bytes of logits that exist at once, temporaries included.

    Returns:
        fp64 [sequences]; log-sum-exp in fp32, from fp64 in fp64; sums in fp64.
    """
    rows = max(1, logits_bytes // (2 * _wide(hidden.dtype).itemsize * head.vocabulary))
    weight, bias = head.module.weight, head.module.bias
    logps: Tensor = _TokenLogps.apply(hidden, weight, bias, targets, head, rows)
    sums = torch.zeros(sequences, dtype=torch.float64, device=hidden.device)
    return sums.index_add(0, sequence, logps.double())


def _wide(dtype: torch.dtype) -> torch.dtype:
    """The precision of logits and of sums over tokens."""
    return torch.float64 if dtype is torch.float64 else torch.float32


def _product(a: Tensor, b: Tensor) -> Tensor:
    """Matrix product that 16-bit inputs do not round to 16 bits, where torch can."""
    if a.dtype is _wide(a.dtype):
        return a @ b
    return torch.mm(a, b, out_dtype=torch.float32) if a.is_cuda else (a @ b).float()


class _TokenLogps(torch.autograd.Function):
    """Log-probability of every target, [targets]. Two tensors of chunk x vocabulary exist at once, in any precision."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, head: Head, rows: int
    ) -> Tensor:
        compute = computed_in(hidden, weight.dtype)
        trained = weight.requires_grad or (bias is not None and bias.requires_grad)
        ready = hidden.requires_grad and not trained
        changes = torch.empty_like(hidden, dtype=compute) if ready else None
        logps = torch.empty(len(targets), dtype=_wide(compute), device=hidden.device)
        with torch.autocast(hidden.device.type, enabled=False):
            projection = weight.to(compute)
            for own in _chunks(len(targets), rows):
                states = hidden[own].to(compute)
                logps[own], by_logits = _chunk(head, states, projection, targets[own], ready)
                if changes is not None and by_logits is not None:
                    torch.mm(by_logits.to(compute), projection, out=changes[own])
                del by_logits  # else it would live beside the next chunk's logits
        ctx.head, ctx.rows, ctx.compute = head, rows, compute
        ctx.save_for_backward(changes, None if ready else hidden, None if ready else weight, targets)
        return logps

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        changes, hidden, weight, targets = ctx.saved_tensors
        if changes is not None:
            return (changes * upstream[:, None]).to(changes.dtype), None, None, None, None, None
        head: Head = ctx.head
        projection = weight.to(ctx.compute)
        by_hidden = torch.empty_like(hidden, dtype=ctx.compute)
        by_weight = torch.zeros_like(weight, dtype=_wide(ctx.compute))
        by_bias = None if head.module.bias is None else torch.zeros_like(head.module.bias, dtype=by_weight.dtype)
        for own in _chunks(len(targets), ctx.rows):
            states = hidden[own].to(ctx.compute)
            _, by_logits = _chunk(head, states, projection, targets[own], True)
            assert by_logits is not None
            by_logits.mul_(upstream[own, None])
            if by_bias is not None:
                by_bias.add_(by_logits.sum(0))
            narrow = by_logits.to(ctx.compute)
            torch.mm(narrow, projection, out=by_hidden[own])
            if narrow.dtype is by_weight.dtype:
                torch.addmm(by_weight, narrow.t(), states, out=by_weight)
            else:
                by_weight.add_(_product(narrow.t(), states))
            del by_logits, narrow
        return by_hidden.to(hidden.dtype), by_weight.to(weight.dtype), by_bias, None, None, None


def _chunks(tokens: int, rows: int) -> Iterator[slice]:
    return (slice(first, min(first + rows, tokens)) for first in range(0, tokens, rows))


def _chunk(
    head: Head, states: Tensor, projection: Tensor, targets: Tensor, gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """Log-probabilities of a chunk's targets [tokens], and, if asked for, their derivative by the logits before scale
    and soft-cap, [tokens, vocabulary]."""
    logits = head.logits(states, projection)
    logps = torch.log_softmax(logits, dim=1)
    chosen = logps.gather(1, targets[:, None])
    if not gradient:
        return chosen[:, 0], None
    by_logits = logps.exp_().neg_().scatter_add_(1, targets[:, None], torch.ones_like(chosen))
    if head.softcap is not None:
        by_logits.mul_(logits.div_(head.softcap).square_().neg_().add_(1))
    return chosen[:, 0], by_logits if head.scale == 1.0 else by_logits.mul_(head.scale)
