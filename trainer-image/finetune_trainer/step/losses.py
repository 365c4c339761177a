"""The objectives: pure functions from log-probabilities to the loss of each pair or sequence.

Nothing here knows of batches, padding or devices. The reduction is the caller's: the sum over all pairs (SFT: target
tokens) of an optimiser step, divided by their number, so that no split into micro-batches can change it.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid


def dpo_loss(policy: Tensor, reference: Tensor, beta: float) -> Tensor:
    """Loss of each pair: -logsigmoid(beta * ((s_w - s_w_ref) - (s_l - s_l_ref))).

    Rafailov et al. 2023, "Direct Preference Optimization", equation 7 (https://arxiv.org/abs/2305.18290).

    Args:
        policy: s, sums of log-probabilities of the answers, [pairs, 2], preferred first.
        reference: the same under the starting weights, [pairs, 2].
        beta: strength of the tie to the reference, > 0.

    Returns:
        [pairs]; ln 2 where policy and reference agree.
    """
    gain = policy - reference
    return -logsigmoid(beta * (gain[:, 0] - gain[:, 1]))


def dpo_rewards(policy: Tensor, reference: Tensor, beta: float) -> Tensor:
    """Implicit reward of each answer, beta * (s - s_ref), [pairs, 2], preferred first (the paper's equation 5 without
    the term that depends on the prompt alone)."""
    return beta * (policy - reference)


def sft_loss(logps: Tensor) -> Tensor:
    """Negative log-likelihood of each sequence, [sequences], from its sum of log-probabilities over target tokens."""
    return -logps
