"""Random tiny models of real architectures, with weights large enough that what attention does shows in the scores."""

from __future__ import annotations

from collections.abc import Callable

import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedModel

from finetune_api.method import TrainingKind
from finetune_trainer.step.model import Policy
from finetune_trainer.step.weights import Base, backbone_of, head_of

VOCABULARY = 97
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
LINEAR = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "shared_expert_intermediate_size": 16,
    "layer_types": ["linear_attention", "full_attention"],
}
CONFIGURATIONS: dict[str, Callable[[], transformers.PreTrainedConfig]] = {
    "llama": lambda: transformers.LlamaConfig(**SIZES),
    "llama, tied": lambda: transformers.LlamaConfig(**SIZES, tie_word_embeddings=True),
    "qwen3": lambda: transformers.Qwen3Config(**SIZES, head_dim=8),
    "phi3": lambda: transformers.Phi3Config(**SIZES, original_max_position_embeddings=30),
    "mistral": lambda: transformers.MistralConfig(**SIZES, sliding_window=8),
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2
    ),
    "qwen3-moe": lambda: transformers.Qwen3MoeConfig(**SIZES, head_dim=8, **EXPERTS),
    "gemma3": lambda: transformers.Gemma3TextConfig(**SIZES, head_dim=8, sliding_window=8),
    "gemma2": lambda: transformers.Gemma2Config(**SIZES, head_dim=8, sliding_window=8, attn_logit_softcapping=1.0),
    "gemma2, no attention cap": lambda: transformers.Gemma2Config(
        **SIZES, head_dim=8, sliding_window=8, attn_logit_softcapping=None, final_logit_softcapping=2.0
    ),
    "gpt-oss": lambda: transformers.GptOssConfig(
        **SIZES, head_dim=8, num_local_experts=4, num_experts_per_tok=2, sliding_window=8
    ),
    "llama4": lambda: transformers.Llama4TextConfig(
        **SIZES,
        head_dim=8,
        attention_chunk_size=8,
        num_local_experts=2,
        intermediate_size_mlp=48,
        no_rope_layers=[1, 0],
    ),
    "qwen3-next": lambda: transformers.Qwen3NextConfig(**SIZES, head_dim=8, **EXPERTS, **LINEAR),
    "minimax-m3": lambda: transformers.MiniMaxM3VLTextConfig(
        **SIZES,
        head_dim=8,
        num_local_experts=4,
        num_experts_per_tok=2,
        index_n_heads=2,
        index_head_dim=8,
        index_block_size=16,
        layer_types=["full_attention", "minimax_m3_sparse"],
    ),
    "bloom": lambda: transformers.BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4),
}


def build(name: str, dtype: torch.dtype = torch.float64, **changes: object) -> PreTrainedModel:
    """The model `name` in evaluation mode; `changes` replace values of its configuration."""
    torch.manual_seed(0)
    config = CONFIGURATIONS[name]()
    for key, value in changes.items():
        setattr(config, key, value)
    model = AutoModelForCausalLM.from_config(config).eval().to(dtype)
    if dtype is torch.float64:
        model.set_experts_implementation("eager")  # the grouped kernel knows no fp64
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def policy_of(model: PreTrainedModel) -> Policy:
    """All of `model`'s weights as a policy on the CPU."""
    base = Base("file:///tiny", model, {}, model.dtype, model.config._attn_implementation)
    return Policy(model, backbone_of(model), head_of(model), base, torch.device("cpu"), TrainingKind.FULL)
