"""Every objective against its formula written out from logits, values and gradients; and the limits they meet in."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch

from finetune_api.method import Preference, TrainingMethod
from finetune_trainer.step.losses import (
    preference_loss,
    preference_margin,
    preference_rewards,
    preferred_nll,
    sft_loss,
)

VOCABULARY = 11
TOLERANCE = 1e-8


def pairs(*values):
    return torch.tensor(values, dtype=torch.float64)


@dataclass
class Example:
    """Raw logits of one pair, each answer with its own prompt before it, under the policy and the reference."""

    prompt: int
    tokens: tuple[list[int], list[int]]
    policy: tuple[torch.Tensor, torch.Tensor]
    reference: tuple[torch.Tensor, torch.Tensor]


@pytest.fixture
def examples():
    """Four pairs; answers of different lengths, one of a single token, token 0 among them."""
    generator = torch.Generator().manual_seed(3)

    def logits(length):
        return 3 * torch.randn(length, VOCABULARY, dtype=torch.float64, generator=generator)

    made = []
    for prompt, won, lost in ((1, 5, 2), (4, 1, 7), (3, 6, 6), (2, 3, 9)):
        lengths = prompt + won, prompt + lost
        tokens = tuple(torch.randint(0, VOCABULARY, (n,), generator=generator).tolist() for n in lengths)
        tokens[0][prompt] = 0
        policy = tuple(logits(n).requires_grad_() for n in lengths)
        made.append(Example(prompt, tokens, policy, tuple(logits(n) for n in lengths)))
    return made


def token_logps(logits, tokens, prompt):
    """log p of each answer token by the definition of the softmax: token t is predicted from position t - 1."""
    return [logits[t - 1][tokens[t]] - torch.log(torch.exp(logits[t - 1]).sum()) for t in range(prompt, len(tokens))]


def lengths_of(examples):
    return torch.tensor([[len(e.tokens[i]) - e.prompt for i in range(2)] for e in examples])


def minus_log_sigmoid(margin):
    return torch.log(1 + torch.exp(-margin))


def mean(values):
    return sum(values) / len(values)


def dpo(w, o, w_ref, o_ref):
    return minus_log_sigmoid(0.3 * ((sum(w) - sum(w_ref)) - (sum(o) - sum(o_ref))))


def dpo_per_token(w, o, w_ref, o_ref):
    return minus_log_sigmoid(5.0 * ((sum(w) - sum(w_ref)) / len(w) - (sum(o) - sum(o_ref)) / len(o)))


def reference_free(w, o, _w_ref, _o_ref):
    return minus_log_sigmoid(0.3 * (sum(w) - sum(o)))


def reference_free_per_token(w, o, _w_ref, _o_ref):
    return minus_log_sigmoid(2.0 * (mean(w) - mean(o)))


def simpo(w, o, _w_ref, _o_ref):
    return minus_log_sigmoid(2.0 * mean(w) - 2.0 * mean(o) - 1.4)


def rpo(w, o, w_ref, o_ref):
    return dpo(w, o, w_ref, o_ref) - 0.7 * mean(w)


def simpo_with_rpo(w, o, w_ref, o_ref):
    return simpo(w, o, w_ref, o_ref) - 0.7 * mean(w)


def smoothed(w, o, w_ref, o_ref):
    margin = 0.3 * ((sum(w) - sum(w_ref)) - (sum(o) - sum(o_ref)))
    return 0.8 * minus_log_sigmoid(margin) + 0.2 * minus_log_sigmoid(-margin)


def smoothed_simpo_with_rpo(w, o, _w_ref, _o_ref):
    margin = 2.0 * (mean(w) - mean(o)) - 1.4
    return 0.8 * minus_log_sigmoid(margin) + 0.2 * minus_log_sigmoid(-margin) - 0.7 * mean(w)


FREE = {"per_token": True, "reference_free": True}
OBJECTIVES = [
    (dpo, Preference(beta=0.3)),
    (dpo_per_token, Preference(beta=5.0, per_token=True)),
    (reference_free, Preference(beta=0.3, reference_free=True)),
    (reference_free_per_token, Preference(beta=2.0, **FREE)),
    (simpo, Preference(beta=2.0, gamma=1.4, **FREE)),
    (rpo, Preference(beta=0.3, rpo_alpha=0.7)),
    (simpo_with_rpo, Preference(beta=2.0, gamma=1.4, rpo_alpha=0.7, **FREE)),
    (smoothed, Preference(beta=0.3, label_smoothing=0.2)),
    (smoothed_simpo_with_rpo, Preference(beta=2.0, gamma=1.4, rpo_alpha=0.7, label_smoothing=0.2, **FREE)),
]


def ours(examples, objective):
    """Our losses from the same logits, through torch's own log-softmax."""
    lengths = lengths_of(examples)

    def sums(side):
        rows = []
        for e in examples:
            for logits, tokens in zip(getattr(e, side), e.tokens, strict=True):
                targets = torch.tensor(tokens[e.prompt :])[:, None]
                rows.append(torch.log_softmax(logits[e.prompt - 1 : -1], -1).gather(1, targets).sum())
        return torch.stack(rows).view(-1, 2)

    reference = None if objective.reference_free else sums("reference")
    return preference_loss(sums("policy"), reference, lengths, objective)


def leaves(examples):
    return [logits for e in examples for logits in e.policy]


@pytest.mark.parametrize(("formula", "objective"), OBJECTIVES, ids=lambda value: getattr(value, "__name__", ""))
def test_an_objective_is_its_formula_on_logits(examples, formula, objective):
    expected = []
    for e in examples:
        policy = [token_logps(e.policy[i], e.tokens[i], e.prompt) for i in range(2)]
        reference = [token_logps(e.reference[i], e.tokens[i], e.prompt) for i in range(2)]
        expected.append(formula(*policy, *reference))
    found = ours(examples, objective)
    assert found.tolist() == pytest.approx([loss.item() for loss in expected], abs=TOLERANCE)
    weights = pairs(1.0, 2.0, 0.5, 3.0)
    theirs = torch.autograd.grad((weights * torch.stack(expected)).sum(), leaves(examples))
    mine = torch.autograd.grad((weights * found).sum(), leaves(examples))
    for gradient, expected_gradient in zip(mine, theirs, strict=True):
        torch.testing.assert_close(gradient, expected_gradient, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(("formula", "objective"), OBJECTIVES, ids=lambda value: getattr(value, "__name__", ""))
def test_gradients_are_those_of_finite_differences(formula, objective):
    policy = pairs((-3.0, -9.0), (-20.0, -4.0)).requires_grad_()
    reference = None if objective.reference_free else pairs((-4.0, -8.5), (-18.0, -4.5))
    lengths = torch.tensor([[3, 9], [11, 2]])
    assert torch.autograd.gradcheck(lambda p: preference_loss(p, reference, lengths, objective), policy)


POLICY, REFERENCE, LENGTHS = (
    pairs((-3.0, -9.0), (-20.0, -4.0)),
    pairs((-4.0, -8.5), (-18.0, -4.5)),
    pairs((3, 9), (11, 2)),
)


def loss_of(**options):
    """The loss of a job with these options."""
    objective = TrainingMethod.model_validate({"type": "DPO", "dpo": options}).preference
    return preference_loss(POLICY, None if objective.reference_free else REFERENCE, LENGTHS, objective)


def test_where_objectives_meet():
    assert torch.equal(loss_of(beta=0.3, rpoAlpha=0), loss_of(beta=0.3))
    assert torch.equal(loss_of(beta=0.3, labelSmoothing=0), loss_of(beta=0.3))
    assert torch.equal(loss_of(beta=0.3, simpoGamma=0), loss_of(beta=0.3))
    normalised = {"normalizeLogratiosByLength": True, "referenceFree": True}
    torch.testing.assert_close(
        loss_of(beta=2, simpoGamma=1e-12), loss_of(beta=2, **normalised), rtol=0, atol=1e-11, msg="SimPO without gamma"
    )
    assert not torch.allclose(loss_of(beta=2, **normalised), loss_of(beta=2, normalizeLogratiosByLength=True))


@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_it_is_ln_2_where_policy_and_reference_agree(per_token, smoothing):
    objective = Preference(beta=0.1, per_token=per_token, label_smoothing=smoothing)
    assert preference_loss(POLICY, POLICY, LENGTHS, objective).tolist() == pytest.approx([math.log(2)] * 2, abs=1e-15)


def test_the_gradient_pushes_the_preferred_answer_up_by_beta_times_the_doubt():
    policy = pairs((-3.0, -9.0)).requires_grad_()
    preference_loss(policy, pairs((-4.0, -8.5)), pairs((3, 9)), Preference(beta=0.3)).sum().backward()
    doubt = 1 / (1 + math.exp(0.3 * 1.5))
    assert policy.grad.tolist() == [pytest.approx([-0.3 * doubt, 0.3 * doubt], abs=1e-12)]


def test_the_rpo_term_pushes_each_token_of_the_preferred_answer_alike():
    policy = POLICY.clone().requires_grad_()
    preferred_nll(policy, LENGTHS).sum().backward()
    assert policy.grad.tolist() == [[-1 / 3, 0.0], [-1 / 11, 0.0]]


def test_gamma_is_absolute():
    """Meng et al.'s own code takes a ratio: beta * (difference - ratio). beta 2 and gamma 1 are its ratio 0.5."""
    beta, ratio = 2.0, 0.5
    difference = (POLICY / LENGTHS)[:, 0] - (POLICY / LENGTHS)[:, 1]
    margin = preference_margin(POLICY, None, LENGTHS, Preference(beta=beta, gamma=1.0, **FREE))
    torch.testing.assert_close(margin, beta * (difference - ratio), rtol=0, atol=1e-15)


@pytest.mark.parametrize("objective", [Preference(beta=50.0), Preference(beta=50.0, label_smoothing=0.2)])
def test_a_huge_margin_overflows_nothing(objective):
    policy = pairs((-1e5, 0.0), (0.0, -1e5)).requires_grad_()
    loss = preference_loss(policy, torch.zeros(2, 2, dtype=torch.float64), LENGTHS, objective)
    loss.sum().backward()
    wrong = objective.label_smoothing
    assert loss.tolist() == pytest.approx([5e6 * (1 - wrong), 5e6 * wrong])
    assert policy.grad.isfinite().all()


def test_rewards():
    def rewards(reference, **objective):
        return preference_rewards(POLICY, reference, LENGTHS, Preference(beta=0.2, **objective))

    gain = 0.2 * pairs((1.0, -0.5), (-2.0, 0.5))
    torch.testing.assert_close(rewards(REFERENCE), gain)
    torch.testing.assert_close(rewards(REFERENCE, per_token=True), gain, msg="the sum, though the loss is per token")
    torch.testing.assert_close(rewards(None, reference_free=True), 0.2 * POLICY)
    torch.testing.assert_close(rewards(None, gamma=1.0, **FREE), 0.2 * POLICY / LENGTHS)


def test_sft_is_the_negative_log_likelihood():
    assert sft_loss(torch.tensor([-2.5, -1.0])).tolist() == [2.5, 1.0]
