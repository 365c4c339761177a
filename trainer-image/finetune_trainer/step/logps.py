"""From hidden states to log-probabilities: the model's head on the scored positions alone, in chunks of tokens.

A vocabulary of 150,000 entries makes 600 kB of logits per token, more than everything else in the step; so logits
exist for one chunk at a time and are computed again in the backward pass.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

LOGITS_BYTES = 512 * 1024**2


@dataclass(frozen=True, slots=True)
class Head:
    """A model's output projection with what its architecture does to the logits after it."""

    module: nn.Module
    """From hidden size to vocabulary."""
    vocabulary: int
    scale: float = 1.0
    """Factor of the logits (Cohere, Granite)."""
    softcap: float | None = None
    """softcap * tanh(logits / softcap) (Gemma 2)."""

    def logits(self, hidden: Tensor) -> Tensor:
        """[tokens, hidden] -> [tokens, vocabulary] in fp32."""
        logits: Tensor = self.module(hidden).float()
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
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
        logits_bytes: most bytes of fp32 logits that exist at once.

    Returns:
        fp64 [sequences]; log-sum-exp in fp32, sums in fp64.
    """
    rows = max(1, logits_bytes // (4 * head.vocabulary))
    recompute = torch.is_grad_enabled() and len(targets) > rows
    parts = [
        checkpoint(_token_logps, head, h, t, use_reentrant=False, preserve_rng_state=False)
        if recompute
        else _token_logps(head, h, t)
        for h, t in zip(hidden.split(rows), targets.split(rows), strict=True)
    ]
    sums = torch.zeros(sequences, dtype=torch.float64, device=hidden.device)
    return sums.index_add(0, sequence, torch.cat(parts).double()) if parts else sums


def _token_logps(head: Head, hidden: Tensor, targets: Tensor) -> Tensor:
    logits = head.logits(hidden)
    chosen = logits.gather(1, targets[:, None]).squeeze(1)
    return chosen - torch.logsumexp(logits, dim=1)
