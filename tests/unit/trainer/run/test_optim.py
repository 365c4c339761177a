"""The learning rate against Hugging Face's schedules, AdamW against its formula."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from transformers import get_scheduler

from finetune_api.hyperparameters import Hyperparameters
from finetune_trainer.run.optim import (
    clip,
    learning_rate,
    make_adamw,
    optimizer_tensors,
    restore_optimizer,
    update,
)

TOTAL = 23


def hyper(**values):
    return Hyperparameters.model_validate({"learningRate": 0.5, **values})


def theirs(name, warmup, **specific):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5)
    schedule = get_scheduler(name, optimizer, warmup, TOTAL, scheduler_specific_kwargs=specific)
    rates = []
    for _ in range(TOTAL):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


@pytest.mark.parametrize(("ratio", "warmup"), [(0.0, 0), (0.1, 3), (1.0, 23)])
@pytest.mark.parametrize(
    ("ours", "name", "specific"),
    [
        ({"type": "Linear"}, "linear", {}),
        ({"type": "Cosine"}, "cosine", {}),
        ({"type": "Cosine", "numCycles": 1.5}, "cosine", {"num_cycles": 1.5}),
        ({"type": "Cosine", "minLrRatio": 0.2}, "cosine_with_min_lr", {"min_lr_rate": 0.2}),
    ],
)
def test_every_step_has_the_rate_of_the_hugging_face_schedule(ours, name, specific, ratio, warmup):
    values = hyper(lrScheduler=ours, warmupRatio=ratio)
    rates = [learning_rate(step, TOTAL, values) for step in range(TOTAL)]
    assert rates == pytest.approx(theirs(name, warmup, **specific), abs=1e-12)


def test_linear_falls_to_its_share_of_the_peak():
    values = hyper(lrScheduler={"type": "Linear", "minLrRatio": 0.4})
    assert learning_rate(0, 10, values) == 0.5
    assert learning_rate(5, 10, values) == pytest.approx(0.5 * (0.4 + 0.6 * 0.5))


def module():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    return model, dict(model.named_parameters())


def test_a_step_is_adamw_and_norms_and_biases_do_not_decay():
    _, parameters = module()
    before = {name: p.detach().clone() for name, p in parameters.items()}
    optimizer = make_adamw(parameters, weight_decay=0.1)
    for parameter in parameters.values():
        parameter.grad = torch.full_like(parameter, 2.0)
    update(optimizer, 0.01, torch.tensor(1.0))
    for name, parameter in parameters.items():
        decay = 0.1 if name == "0.weight" else 0.0
        expected = before[name] * (1 - 0.01 * decay) - 0.01 * 2.0 / (2.0 + 1e-8)
        torch.testing.assert_close(parameter.detach(), expected, rtol=0, atol=1e-7)


def test_gradients_are_clipped_to_the_norm_and_zero_means_never():
    _, parameters = module()
    for limit, norm_after in ((1.0, 1.0), (0.0, 2 * math.sqrt(24))):
        for parameter in parameters.values():
            parameter.grad = torch.full_like(parameter, 2.0)
        assert float(clip(parameters, limit)) == pytest.approx(2 * math.sqrt(24))
        after = math.sqrt(sum(float((p.grad**2).sum()) for p in parameters.values()))
        assert after == pytest.approx(norm_after, rel=1e-5)


def test_a_restored_optimizer_makes_the_same_next_step():
    results = []
    for restored in (False, True):
        _, parameters = module()
        optimizer = make_adamw(parameters, 0.1)
        for step in range(4):
            if restored and step == 2:
                kept = {name: tensor.clone() for name, tensor in optimizer_tensors(optimizer, parameters).items()}
                optimizer = make_adamw(parameters, 0.1)
                restore_optimizer(optimizer, parameters, kept, lambda tensor, key, kept=kept: tensor.copy_(kept[key]))
            for number, parameter in enumerate(parameters.values()):
                parameter.grad = torch.full_like(parameter, 0.3 * (step + 1) * (-1) ** number)
            update(optimizer, 0.1 / (step + 1), torch.tensor(1.0))
        results.append(torch.cat([p.detach().flatten() for p in parameters.values()]))
    assert torch.equal(*results)


@pytest.mark.parametrize("before", [0, 3], ids=["first step", "later step"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_step_whose_gradient_is_not_finite_is_as_if_it_never_was(bad, before):
    """Weights, moments and step counts, and so every step after it, bit for bit."""
    ends = []
    for skips in (False, True):
        _, parameters = module()
        optimizer = make_adamw(parameters, 0.1)
        for step in range(before + 3):
            if skips and step == before:
                for parameter in parameters.values():
                    parameter.grad = torch.full_like(parameter, 1.0)
                next(iter(parameters.values())).grad[0, 0] = bad
                update(optimizer, 0.05, clip(parameters, 1.0))
                assert all(parameter.grad is None for parameter in parameters.values())
            for number, parameter in enumerate(parameters.values()):
                parameter.grad = torch.full_like(parameter, 0.3 * (step + 1) * (-1) ** number)
            update(optimizer, 0.1, clip(parameters, 1.0))
        ends.append((parameters, optimizer_tensors(optimizer, parameters)))
    (weights, state), (skipped_weights, skipped_state) = ends
    assert {float(value) for name, value in state.items() if name.startswith("step:")} == {before + 3.0}
    for plain, skipped in ((weights, skipped_weights), (state, skipped_state)):
        assert plain.keys() == skipped.keys()
        assert all(torch.equal(plain[name], skipped[name]) for name in plain)
