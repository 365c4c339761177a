"""Log-probabilities against the stock model's own logits, for every kind of head, whole and in chunks."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PhiConfig,
    PhiForCausalLM,
)

from architectures import SIZES, policy_of
from finetune_trainer.data.tokens import Pair
from finetune_trainer.step import model as model_module
from finetune_trainer.step.batch import pair_batch
from finetune_trainer.step.logps import Head, sequence_logps
from finetune_trainer.step.recipe import Level
from finetune_trainer.step.weights import head_of, head_problem
from live import LivePeak

MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "llama, tied": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=True)),
    "gemma2, soft-cap": lambda: Gemma2ForCausalLM(
        Gemma2Config(**SIZES, head_dim=8, final_logit_softcapping=0.3, attn_implementation="eager")
    ),
    "cohere, scaled": lambda: CohereForCausalLM(CohereConfig(**SIZES, logit_scale=0.25)),
    "granite, divided": lambda: GraniteForCausalLM(GraniteConfig(**SIZES, logits_scaling=4.0)),
    "phi, bias": lambda: PhiForCausalLM(PhiConfig(**SIZES)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=97, n_embd=32, n_layer=2, n_head=4)),
}


@pytest.fixture(params=MODELS)
def model(request):
    torch.manual_seed(0)
    model = MODELS[request.param]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def test_sums_equal_those_of_the_stock_logits(model):
    tokens = torch.randint(3, 97, (3, 11), generator=torch.Generator().manual_seed(1))
    stock = torch.log_softmax(model(tokens, use_cache=False).logits.double(), dim=-1)
    expected = stock[:, :-1].gather(2, tokens[:, 1:, None]).sum(dim=(1, 2))

    hidden = model.base_model(tokens, use_cache=False).last_hidden_state[:, :-1].flatten(0, 1)
    sequence = torch.arange(3).repeat_interleave(10)
    ours = sequence_logps(hidden, head_of(model), tokens[:, 1:].flatten(), sequence, 3)
    assert ours.dtype is torch.float64
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4)


def test_the_probe_accepts_a_head_that_is_known(model):
    assert head_problem(model) is None


def test_the_probe_refuses_a_head_that_does_more_than_is_known():
    model = LlamaForCausalLM(LlamaConfig(**SIZES))
    assert head_problem(model) is None
    model.config.logit_scale = 3.0
    assert head_problem(model) == "its logits are not what its head gives, so log-probabilities would be wrong"


def problem():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(50, 16, generator=generator).requires_grad_()
    head = Head(torch.nn.Linear(16, 40), scale=1.5, softcap=2.0)
    targets = torch.randint(0, 40, (50,), generator=generator)
    return hidden, head, targets, torch.arange(50) % 4


def test_chunks_change_neither_values_nor_gradients():
    hidden, head, targets, sequence = problem()
    results = []
    for logits_bytes in (40 * 8 * 7, 40 * 8 * 1000, 1):
        hidden.grad = head.module.weight.grad = None
        sums = sequence_logps(hidden, head, targets, sequence, 4, logits_bytes)
        (sums / 50).sum().backward()
        results.append((sums.detach(), hidden.grad, head.module.weight.grad))
    for other in results[1:]:
        for mine, theirs in zip(results[0], other, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-6)


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that any operation made."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return made


@pytest.mark.parametrize("trained", [True, False])
def test_no_more_logits_than_allowed_exist_at_once(trained):
    hidden, head, targets, sequence = problem()
    head.module.requires_grad_(trained)
    with Largest() as largest:
        sequence_logps(hidden, head, targets, sequence, 4, logits_bytes=40 * 8 * 17).sum().backward()
    assert largest.elements == max(17 * 40, 50 * 16)


@pytest.mark.parametrize("trained", [True, False])
def test_nothing_of_a_chunk_outlives_it(trained):
    """Logits and what becomes of them, both of one chunk, however many chunks there are."""
    vocabulary, rows = 4096, 8
    peaks = []
    for targets in (rows, 4 * rows):
        head = Head(torch.nn.Linear(4, vocabulary, bias=False).requires_grad_(trained))
        hidden = torch.randn(targets, 4, requires_grad=True)
        ids = torch.arange(targets)
        with LivePeak([hidden, head.module.weight]) as mode:
            sequence_logps(hidden, head, ids, ids, targets, logits_bytes=8 * rows * vocabulary).sum().backward()
        peaks.append(mode.peak)
    assert peaks[1] - peaks[0] < rows * vocabulary


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("frozen", [True, False])
def test_no_tensor_of_a_step_is_larger_than_a_chunk_of_logits_or_a_parameter(monkeypatch, tied, frozen):
    """A whole step, forward and backward, with a vocabulary of 128k: 32 tokens of 200 may have logits at once."""
    vocabulary, rows = 131_072, 32
    config = LlamaConfig(**SIZES | {"vocab_size": vocabulary, "hidden_size": 16}, tie_word_embeddings=tied)
    policy = policy_of(LlamaForCausalLM(config))
    policy.base.causal.get_output_embeddings().weight.requires_grad_(not frozen)
    monkeypatch.setattr(model_module, "sequence_logps", partial(sequence_logps, logits_bytes=8 * rows * vocabulary))
    answers = np.arange(3, 203, dtype=np.int32)
    batch = pair_batch([Pair(1, answers[:20], answers[:100], answers[100:])], Level.SHARED)
    with Largest() as largest:
        policy.score(batch).sum().backward()
    assert largest.elements == rows * vocabulary > vocabulary * 16


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("softcap", [None, 0.7])
def test_the_gradient_is_the_derivative(trained, bias, softcap):
    torch.manual_seed(0)
    head = Head(torch.nn.Linear(3, 5, bias=bias, dtype=torch.float64), scale=1.7, softcap=softcap)
    head.module.requires_grad_(trained)
    hidden = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    targets, sequence = torch.tensor([0, 4, 4, 1]), torch.tensor([0, 1, 1, 0])

    def sums(hidden, *_weights):
        return sequence_logps(hidden, head, targets, sequence, 2, logits_bytes=3 * 16 * 5)

    assert torch.autograd.gradcheck(sums, (hidden, *(head.module.parameters() if trained else ())))


def test_fp64_stays_fp64():
    hidden, head, targets, sequence = problem()
    head.module.double()
    hidden = hidden.detach().double()
    sums = sequence_logps(hidden, head, targets, sequence, 4)
    logits = torch.tanh(head.module(hidden) * 1.5 / 2) * 2
    expected = torch.log_softmax(logits, -1).gather(1, targets[:, None])[:, 0]
    torch.testing.assert_close(sums, torch.zeros(4).double().index_add(0, sequence, expected), rtol=0, atol=1e-13)


def test_16_bit_weights_keep_32_bit_sums():
    """Against fp32 arithmetic on the same rounded inputs: what is left is the rounding of a logit."""
    hidden, head, targets, sequence = problem()
    narrow = Head(head.module.bfloat16(), head.scale, head.softcap)
    states = hidden.detach().bfloat16().requires_grad_()
    sums = sequence_logps(states, narrow, targets, sequence, 4)
    sums.sum().backward()
    wide = torch.nn.Linear(16, 40)
    wide.load_state_dict({name: value.float() for name, value in head.module.state_dict().items()})
    exact = states.detach().float().requires_grad_()
    expected = sequence_logps(exact, Head(wide, head.scale, head.softcap), targets, sequence, 4)
    expected.sum().backward()
    torch.testing.assert_close(sums, expected, rtol=0, atol=0.05)
    torch.testing.assert_close(states.grad.float(), exact.grad, rtol=0.05, atol=0.01)
    assert head.module.weight.grad.dtype is torch.bfloat16


def test_a_frozen_head_gets_no_gradient():
    hidden, head, targets, sequence = problem()
    sequence_logps(hidden, head, targets, sequence, 4, logits_bytes=40 * 8 * 7).sum().backward()
    expected, hidden.grad = hidden.grad, None
    head.module.weight.grad = None
    head.module.requires_grad_(False)
    sequence_logps(hidden, head, targets, sequence, 4, logits_bytes=40 * 8 * 7).sum().backward()
    assert head.module.weight.grad is None
    torch.testing.assert_close(hidden.grad, expected, rtol=1e-6, atol=1e-6)


def test_a_sequence_without_targets_scores_zero():
    hidden, head, targets, sequence = problem()
    assert sequence_logps(hidden, head, targets, sequence, 6)[4:].tolist() == [0.0, 0.0]
