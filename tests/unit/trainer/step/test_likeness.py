"""The measure of a merge: passes in fp32 over weights that stay as they are, and memory that is given back."""

from __future__ import annotations

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3NextConfig, Qwen3NextForCausalLM

from finetune_trainer.step.likeness import _in_fp32, _loaded

LINE = torch.arange(12)[None]


def llama(dtype):
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2)).to(dtype).eval()


@torch.no_grad()
def test_passes_are_in_fp32_and_the_weights_stay_in_bf16():
    model = llama(torch.bfloat16)
    with _in_fp32(model):
        measured = model(input_ids=LINE).logits
        assert {p.dtype for p in model.parameters()} == {torch.bfloat16}, "one layer at a time is widened"
    before = model(input_ids=LINE).logits
    assert (measured.dtype, before.dtype) == (torch.float32, torch.bfloat16), "and nothing afterwards"
    torch.testing.assert_close(measured, model.float()(input_ids=LINE).logits, rtol=0, atol=1e-6)


def mixture(dtype):
    """Linear attention, which reads the weights of a convolution that it does not call, and experts."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "head_dim": 16}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "linear_num_key_heads": 2, "linear_num_value_heads": 2}
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    linear = {"linear_key_head_dim": 8, "linear_value_head_dim": 8, "shared_expert_intermediate_size": 16}
    kinds = ["linear_attention", "full_attention"]
    config = Qwen3NextConfig(**sizes, **heads, **experts, **linear, layer_types=kinds)
    return Qwen3NextForCausalLM(config).to(dtype).eval()


@torch.no_grad()
def test_layers_that_read_weights_of_their_parts_compute_in_fp32_too():
    model = mixture(torch.bfloat16)
    with _in_fp32(model):
        measured = model(input_ids=LINE).logits
    torch.testing.assert_close(measured, model.float()(input_ids=LINE).logits, rtol=0, atol=1e-6)


@torch.no_grad()
def test_passes_over_fp32_weights_are_as_ever():
    model = llama(torch.float32)
    plain = model(input_ids=LINE).logits
    with _in_fp32(model):
        assert torch.equal(model(input_ids=LINE).logits, plain)


def test_a_model_is_loaded_in_the_precision_of_its_files_and_its_memory_given_back(tmp_path):
    llama(torch.bfloat16).save_pretrained(tmp_path)
    with _loaded(tmp_path, "uri", torch.device("cpu"), remote_code=False) as model:
        assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert {p.device.type for p in model.parameters()} == {"meta"}
