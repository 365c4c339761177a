"""The losses against the formulas written out with math, and their gradients."""

from __future__ import annotations

import math

import pytest
import torch

from finetune_trainer.step.losses import dpo_loss, dpo_rewards, sft_loss


def pairs(*values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("beta", [0.05, 0.1, 2.0])
def test_dpo_is_minus_log_sigmoid_of_the_margin(beta):
    policy, reference = pairs((-3.0, -9.0), (-20.0, -4.0)), pairs((-4.0, -8.5), (-18.0, -4.5))
    margins = [(1.0 - -0.5), (-2.0 - 0.5)]
    expected = [-math.log(1 / (1 + math.exp(-beta * margin))) for margin in margins]
    assert dpo_loss(policy, reference, beta).tolist() == pytest.approx(expected, abs=1e-12)


def test_dpo_is_ln_2_where_policy_and_reference_agree():
    scores = pairs((-3.0, -9.0), (-200.0, -4.0))
    assert dpo_loss(scores, scores, 0.1).tolist() == [math.log(2)] * 2


def test_the_gradient_pushes_the_preferred_answer_up_by_beta_times_the_doubt():
    policy = pairs((-3.0, -9.0)).requires_grad_()
    reference = pairs((-4.0, -8.5))
    dpo_loss(policy, reference, 0.3).sum().backward()
    doubt = 1 / (1 + math.exp(0.3 * 1.5))
    assert policy.grad.tolist() == [pytest.approx([-0.3 * doubt, 0.3 * doubt], abs=1e-12)]
    assert torch.autograd.gradcheck(lambda p: dpo_loss(p, reference, 0.3), policy)


def test_a_huge_margin_overflows_nothing():
    loss = dpo_loss(pairs((-1e5, 0.0), (0.0, -1e5)), pairs((0.0, 0.0), (0.0, 0.0)), 1.0)
    assert loss.tolist() == pytest.approx([1e5, 0.0])


def test_a_reward_is_beta_times_the_gain_on_the_reference():
    assert dpo_rewards(pairs((-3.0, -9.0)), pairs((-4.0, -8.5)), 0.2).tolist() == [pytest.approx([0.2, -0.1])]


def test_sft_is_the_negative_log_likelihood():
    assert sft_loss(torch.tensor([-2.5, -1.0])).tolist() == [2.5, 1.0]
