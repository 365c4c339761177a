"""The objectives: pure functions from log-probabilities to the loss of each pair or sequence.

Nothing here knows of batches, padding or devices. The reduction is the caller's: the sum over all pairs (SFT: target
tokens) of an optimiser step, divided by their number, so that no split into micro-batches can change it.

Notation: s is the sum of log-probabilities of an answer's tokens, s_ref the same under the starting weights, L the
number of those tokens (end-of-turn token included, prompt excluded), w the preferred answer and l the other. Tensors
of shape [pairs, 2] hold w first. `reference` None stands for a comparison without one: s in place of s - s_ref.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid

from finetune_api.method import Preference


def preference_loss(policy: Tensor, reference: Tensor | None, lengths: Tensor, objective: Preference) -> Tensor:
    """Loss of each pair: f(margin) + rpo_alpha * nll, where f(m) = -logsigmoid(m).

    Label smoothing e takes a share e of the pairs to be labelled the wrong way round: (1 - e) * f(m) + e * f(-m),
    Mitchell 2023, "A note on DPO with noisy preferences", equation 3 (cDPO; https://ericmitchell.ai/cdpo.pdf).

    Args:
        policy: s, [pairs, 2].
        reference: s_ref, [pairs, 2], or None.
        lengths: L, [pairs, 2], each at least 1.
        objective: which of the objectives it is.

    Returns:
        [pairs], of `policy`'s type; ln 2 where policy and reference agree and there is neither gamma nor RPO term.
    """
    margin = preference_margin(policy, reference, lengths, objective)
    smoothing = objective.label_smoothing
    loss = -(1 - smoothing) * logsigmoid(margin) - smoothing * logsigmoid(-margin)
    return loss + objective.rpo_alpha * preferred_nll(policy, lengths)


def preference_margin(policy: Tensor, reference: Tensor | None, lengths: Tensor, objective: Preference) -> Tensor:
    """By how much the preferred answer of each pair wins, in units of the logistic function, [pairs].

    | objective | margin | source |
    |---|---|---|
    | DPO | beta * ((s_w - s_ref_w) - (s_l - s_ref_l)) | Rafailov et al. 2023, equation 7 (arXiv 2305.18290) |
    | per token | the same with (s - s_ref) / L | Lambert et al. 2024, "Tülu 3", section 5.1 (arXiv 2411.15124) |
    | reference-free | the same with s in place of s - s_ref | Rafailov's own code, `reference_free` |
    | SimPO | beta * (s_w / L_w - s_l / L_l) - gamma | Meng et al. 2024, equation 6 (arXiv 2405.14734) |

    Gamma is the absolute margin of SimPO's paper; its authors' code takes gamma / beta instead.
    """
    gain = policy if reference is None else policy - reference
    if objective.per_token:
        gain = gain / lengths
    return objective.beta * (gain[:, 0] - gain[:, 1]) - objective.gamma


def preferred_nll(policy: Tensor, lengths: Tensor) -> Tensor:
    """Negative log-likelihood per token of each preferred answer, -s_w / L_w, [pairs].

    The term that RPO adds: Pang et al. 2024, "Iterative Reasoning Preference Optimization", equation 1 (arXiv
    2404.19733v3): a mean over the answer's own tokens, so that no other pair of a batch changes it.
    """
    return -policy[:, 0] / lengths[:, 0]


def preference_rewards(policy: Tensor, reference: Tensor | None, lengths: Tensor, objective: Preference) -> Tensor:
    """Implicit reward of each answer, [pairs, 2].

    With a reference beta * (s - s_ref), also where the loss compares per token (Rafailov et al., equation 5 without the
    term that depends on the prompt alone); without one beta * s, per token beta * s / L (Meng et al., equation 4).
    """
    if reference is not None:
        return objective.beta * (policy - reference)
    return objective.beta * (policy / lengths if objective.per_token else policy)


def sft_loss(logps: Tensor) -> Tensor:
    """Negative log-likelihood of each sequence, [sequences], from its sum of log-probabilities over target tokens."""
    return -logps
