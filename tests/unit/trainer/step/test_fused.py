"""A LoRA linear in one operation gives what PEFT's layer gives, and where it would not, that one computes."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import Linear as LoraLinear
from torch import nn

from finetune_trainer.step import fused
from finetune_trainer.step.fused import fuse
from training import load, lora

INPUTS, OUTPUTS, RANK = 12, 10, 3


class Net(nn.Module):
    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.layer = nn.Linear(INPUTS, OUTPUTS, bias=bias)
        self.config = {"model_type": "custom"}

    def forward(self, x):
        return self.layer(x)


def adapted(dtype=torch.float64, bias=True, dropout=0.0):
    """The same layer as PEFT's and fused."""
    pair = []
    for _ in range(2):
        torch.manual_seed(3)
        config = LoraConfig(r=RANK, lora_alpha=7, lora_dropout=dropout, target_modules=["layer"])
        model = get_peft_model(Net(bias), config).to(dtype)
        nn.init.normal_(model.base_model.model.layer.lora_B["default"].weight)
        pair.append(model)
    fuse(pair[1])
    return pair


def passed(model, x, weights):
    """Output, and gradients of the input and of what moves."""
    x = x.clone().requires_grad_()
    out = model(x)
    (out * weights.to(out.dtype)).sum().backward()
    return [out.detach(), x.grad, *(p.grad for p in model.parameters() if p.requires_grad)]


@pytest.fixture
def used(monkeypatch):
    """How often the one operation ran."""
    count, apply = [], fused._LoraLinear.apply
    monkeypatch.setattr(fused._LoraLinear, "apply", lambda *given: count.append(1) or apply(*given))
    return count


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(1, 5), (5,), (2, 3, 4)])
def test_it_is_peft_s_layer_forward_and_backward(bias, shape, used):
    theirs, ours = adapted(bias=bias)
    x = torch.randn(*shape, INPUTS, dtype=torch.float64)
    weights = torch.randn(*shape, OUTPUTS, dtype=torch.float64)
    for found, right in zip(passed(ours, x, weights), passed(theirs, x, weights), strict=True):
        torch.testing.assert_close(found, right, rtol=1e-12, atol=1e-12)
    assert used == [1]


def test_gradients_are_those_of_differences(used):
    _, ours = adapted()
    parameters = tuple(p for p in ours.parameters() if p.requires_grad)
    x = torch.randn(4, INPUTS, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, *_parameters: ours(x), (x, *parameters))
    assert used


def test_an_input_that_nothing_learns_from_gets_no_gradient():
    theirs, ours = adapted()
    x = torch.randn(4, INPUTS, dtype=torch.float64)
    for model in (theirs, ours):
        model(x).sum().backward()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None)
        if one.grad is not None:
            torch.testing.assert_close(one.grad, other.grad)


def test_under_autocast_it_is_as_near_to_the_truth_as_peft_s_layer(used):
    theirs, ours = adapted(torch.float32)
    exact = deepcopy(theirs).double()
    x, weights = torch.randn(64, INPUTS), torch.randn(64, OUTPUTS)
    right = passed(exact, x.double(), weights)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, other = passed(ours, x, weights), passed(theirs, x, weights)
    assert used == [1]
    for mine, theirs_, truth in zip(found, other, right, strict=True):
        assert mine.dtype == theirs_.dtype
        ours_off, theirs_off = ((value.double() - truth).norm() / truth.norm() for value in (mine, theirs_))
        assert ours_off <= 1.5 * theirs_off + 1e-6
        assert ours_off < 0.02


def test_with_dropout_peft_s_layer_computes_in_training_alone(used):
    theirs, ours = adapted(dropout=0.5)
    x = torch.randn(8, INPUTS, dtype=torch.float64)
    torch.manual_seed(0)
    expected = theirs.train()(x)
    torch.manual_seed(0)
    torch.testing.assert_close(ours.train()(x), expected, rtol=0, atol=0)
    assert not used
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))
    assert used == [1]


def test_without_its_adapter_a_layer_is_its_base(used):
    theirs, ours = adapted()
    x = torch.randn(8, INPUTS, dtype=torch.float64)
    with ours.disable_adapter(), theirs.disable_adapter():
        torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=0)
    assert not used


def test_precisions_that_differ_are_peft_s_affair(used):
    _, ours = adapted(torch.float32)
    ours.base_model.model.layer.base_layer.to(torch.bfloat16)
    assert ours(torch.randn(3, INPUTS, dtype=torch.bfloat16)).dtype is torch.bfloat16
    assert not used


def test_a_policy_computes_so(tiny_model, used):
    policy = load(tiny_model, lora=lora())
    layers = [module for module in policy.root.modules() if isinstance(module, LoraLinear)]
    with torch.no_grad():
        policy.backbone(input_ids=torch.arange(5)[None], use_cache=False)
    assert len(used) == len(layers) > 0
