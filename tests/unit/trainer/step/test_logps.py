"""Log-probabilities against the stock model's own logits, for every kind of head, whole and in chunks."""

from __future__ import annotations

import pytest
import torch
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

from finetune_trainer.step.logps import Head, sequence_logps
from finetune_trainer.step.weights import head_is_exact, head_of

SMALL = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SMALL)),
    "llama, tied": lambda: LlamaForCausalLM(LlamaConfig(**SMALL, tie_word_embeddings=True)),
    "gemma2, soft-cap": lambda: Gemma2ForCausalLM(
        Gemma2Config(**SMALL, head_dim=8, final_logit_softcapping=0.3, attn_implementation="eager")
    ),
    "cohere, scaled": lambda: CohereForCausalLM(CohereConfig(**SMALL, logit_scale=0.25)),
    "granite, divided": lambda: GraniteForCausalLM(GraniteConfig(**SMALL, logits_scaling=4.0)),
    "phi, bias": lambda: PhiForCausalLM(PhiConfig(**SMALL)),
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
    assert head_is_exact(model)


def test_the_probe_refuses_a_head_that_does_more_than_is_known():
    model = LlamaForCausalLM(LlamaConfig(**SMALL))
    assert head_is_exact(model)
    model.config.logit_scale = 3.0
    assert not head_is_exact(model)


def problem():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(50, 16, generator=generator).requires_grad_()
    head = Head(torch.nn.Linear(16, 40), vocabulary=40, softcap=2.0)
    targets = torch.randint(0, 40, (50,), generator=generator)
    return hidden, head, targets, torch.arange(50) % 4


def test_chunks_change_neither_values_nor_gradients():
    hidden, head, targets, sequence = problem()
    results = []
    for logits_bytes in (40 * 4 * 7, 40 * 4 * 1000, 1):
        hidden.grad = head.module.weight.grad = None
        sums = sequence_logps(hidden, head, targets, sequence, 4, logits_bytes)
        (sums / 50).sum().backward()
        results.append((sums.detach(), hidden.grad, head.module.weight.grad))
    for other in results[1:]:
        for mine, theirs in zip(results[0], other, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-6)


def test_no_more_logits_than_allowed_exist_at_once():
    hidden, head, targets, sequence = problem()
    seen = []
    head.module.register_forward_hook(lambda _module, _inputs, logits: seen.append(len(logits)))
    sequence_logps(hidden, head, targets, sequence, 4, logits_bytes=40 * 4 * 7).sum().backward()
    assert max(seen) == 7
    assert sum(seen) == 2 * 50, "forward, and once more in backward"


def test_a_frozen_head_gets_no_gradient():
    hidden, head, targets, sequence = problem()
    head.module.requires_grad_(False)
    sequence_logps(hidden, head, targets, sequence, 4, logits_bytes=40 * 4 * 7).sum().backward()
    assert head.module.weight.grad is None
    assert hidden.grad is not None


def test_a_sequence_without_targets_scores_zero():
    hidden, head, targets, sequence = problem()
    assert sequence_logps(hidden, head, targets, sequence, 6)[4:].tolist() == [0.0, 0.0]
