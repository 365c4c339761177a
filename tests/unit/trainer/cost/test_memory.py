"""Estimated bytes against real ones: what autograd keeps, and the most that lives at once in a step on the CPU."""

from contextlib import nullcontext
from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pytest
import torch
from transformers import (
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MixtralConfig,
    Phi3Config,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

from finetune_trainer.cost.load import Load, Rows
from finetune_trainer.cost.memory import CONTEXT, Training, memory
from finetune_trainer.data.tokens import Pair
from finetune_trainer.step.batch import pair_batch
from finetune_trainer.step.model import Policy
from finetune_trainer.step.recipe import Level
from live import kept_bytes, random_policy, step_peak
from shapes import read_shape
from training import lora

PROMPT, PREFERRED, OTHER = 41, 19, 17
WORDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SMALL = WORDS | {
    "vocab_size": 301,
    "hidden_size": 40,
    "intermediate_size": 112,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
ADAPTER = lora(rank=16)
NO_DROPOUT = {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0}
GPT2 = WORDS | NO_DROPOUT
LAYERS = {
    "llama": lambda n: LlamaConfig(**SMALL, num_hidden_layers=n),
    "qwen2": lambda n: Qwen2Config(**SMALL, num_hidden_layers=n),
    "qwen3": lambda n: Qwen3Config(**SMALL, num_hidden_layers=n, head_dim=16),
    "gemma3": lambda n: Gemma3TextConfig(**SMALL, num_hidden_layers=n, head_dim=16, layer_types=["full_attention"] * n),
    "phi3": lambda n: Phi3Config(**SMALL, num_hidden_layers=n),
    "gpt2": lambda n: GPT2Config(**GPT2, vocab_size=301, n_embd=40, n_layer=n, n_head=4),
    "mixtral": lambda n: MixtralConfig(**SMALL, num_hidden_layers=n, num_local_experts=4),
    "qwen3-moe": lambda n: Qwen3MoeConfig(
        **SMALL, num_hidden_layers=n, head_dim=16, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24
    ),
}
NARROW_ERROR = {"qwen3-moe": 0.12, "mixtral": 0.1, "gemma3": 0.06, "phi3": 0.04}
"""Of these a GPU keeps a little more than is estimated: routers and fused layers, experts in fp32, Gemma's norms."""


@pytest.fixture(autouse=True)
def quiet():
    """transformers warns about token ids that are not in a small vocabulary."""
    with patch("transformers.configuration_utils.logger.warning"):
        yield


def pair(*lengths):
    return Pair(1, *(np.full(length, 5, np.int32) for length in lengths))


def rows_of(*pairs):
    prompts, firsts, seconds = np.array([[len(p.prompt), len(p.preferred), len(p.non_preferred)] for p in pairs]).T
    return Rows(prompts, firsts, seconds, firsts + seconds, np.arange(len(pairs)))


def narrow(policy):
    """The policy as a GPU would hold it and compute with it, on a CPU."""
    for name, parameter in policy.root.named_parameters():
        if not parameter.requires_grad and "lora" not in name:
            parameter.data = parameter.data.bfloat16()
    return patch.object(Policy, "precision", lambda _self: torch.autocast("cpu", dtype=torch.bfloat16))


def kept_by_a_layer(make, adapter, *, gpu):
    """Difference that one more layer makes to what a pass keeps."""
    kept = []
    for layers in (2, 3):
        policy = random_policy(make(layers), adapter)
        batch = pair_batch([pair(PROMPT, PREFERRED, OTHER)], Level.SINGLE if gpu else Level.SHARED)
        with narrow(policy) if gpu else nullcontext():
            kept.append(kept_bytes(policy, replace(batch, passes=batch.passes[:1])))
    return kept[1] - kept[0]


def estimated_for_a_layer(shape, adapter, *, gpu):
    rows = rows_of(pair(PROMPT, PREFERRED, OTHER))
    load = Load(PROMPT + PREFERRED, PREFERRED) if gpu else rows.packed(1, 1)
    two, three = (Training(replace(shape, layers=layers), adapter, gpu) for layers in (2, 3))
    more = [memory(training, load, checkpointing=False).activations for training in (two, three)]
    narrow = shape.in_layers if adapter is None else 0 if two.fused else two.trained
    return more[1] - more[0] + (2 * (narrow // 2) if gpu else 0)


@pytest.mark.parametrize("adapter", [ADAPTER, None], ids=["lora", "full"])
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_keeps_what_is_estimated(name, adapter, tmp_path):
    shape = read_shape(random_policy(LAYERS[name](2), None).base.causal, tmp_path)
    real = kept_by_a_layer(LAYERS[name], adapter, gpu=False)
    assert estimated_for_a_layer(shape, adapter, gpu=False) == pytest.approx(real, rel=0.01)


@pytest.mark.parametrize("adapter", [ADAPTER, None], ids=["lora", "full"])
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_under_autocast_keeps_what_is_estimated(name, adapter, tmp_path):
    shape = read_shape(random_policy(LAYERS[name](2), None).base.causal, tmp_path)
    real = kept_by_a_layer(LAYERS[name], adapter, gpu=True)
    estimated = estimated_for_a_layer(shape, adapter, gpu=True)
    assert estimated == pytest.approx(real, rel=NARROW_ERROR.get(name, 0.01))


MEDIUM = WORDS | {
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
STEPS: dict[str, PreTrainedConfig] = {
    "small vocabulary": LlamaConfig(**MEDIUM, vocab_size=301),
    "large vocabulary, tied": Qwen3Config(**MEDIUM, vocab_size=16001, head_dim=96, tie_word_embeddings=True),
    "gpt2": GPT2Config(**GPT2, vocab_size=4001, n_embd=256, n_layer=4, n_head=4),
    "experts": Qwen3MoeConfig(
        **MEDIUM, vocab_size=301, head_dim=64, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=96
    ),
}


@pytest.mark.parametrize("adapter", [ADAPTER, None], ids=["lora", "full"])
@pytest.mark.parametrize("name", STEPS)
def test_a_step_takes_what_is_estimated(name, adapter, tmp_path):
    policy = random_policy(STEPS[name], adapter)
    shape = read_shape(random_policy(STEPS[name], None).base.causal, tmp_path)
    training, pairs = Training(shape, adapter, gpu=False), [pair(301, 100, 90)] * 2
    rows = rows_of(*pairs)
    for load, batch, checkpointing, split in (
        (rows.packed(4096, 2), pair_batch(pairs, Level.SHARED), False, False),
        (rows.packed(4096, 2), pair_batch(pairs, Level.SHARED), True, False),
        (rows.alone(0), pair_batch(pairs[:1], Level.SINGLE), True, True),
    ):
        real = step_peak(policy, batch, checkpointing=checkpointing, split=split)
        assert 0.95 <= memory(training, load, checkpointing=checkpointing).total / real <= 1.15


@pytest.fixture(scope="module")
def shape(tmp_path_factory):
    return read_shape(random_policy(LAYERS["llama"](2), None).base.causal, tmp_path_factory.mktemp("llama"))


def test_a_gpu_holds_narrow_weights_under_an_adapter_and_wide_ones_else(shape):
    load = Load(60, 20)
    adapted = memory(Training(shape, ADAPTER, gpu=True), load, checkpointing=True)
    whole = memory(Training(shape, None, gpu=True), load, checkpointing=True)
    trained = 2 * 16 * (4 * 40 + 2 * (40 + 20) + 2 * (40 + 112) + (112 + 40))
    assert adapted.weights == 2 * shape.parameters + 4 * trained
    dropping = Training(shape, lora(rank=16, dropout=0.1), gpu=True)
    assert memory(dropping, load, checkpointing=True).weights == adapted.weights + 2 * trained
    assert (adapted.gradients, adapted.optimizer, adapted.overhead) == (4 * trained, 8 * trained, CONTEXT)
    assert whole.weights == 4 * shape.parameters + 2 * shape.in_layers
    assert (whole.gradients, whole.optimizer) == (4 * shape.parameters, 8 * shape.parameters)


def test_only_modules_that_are_named_have_an_adapter(shape):
    training = Training(shape, lora(rank=16, trainable_modules=("q_proj", "v_proj")), gpu=False)
    assert [linear.last for linear in training.kept] == ["q_proj", "v_proj"]
    assert training.trained == 2 * 16 * ((40 + 40) + (40 + 20))


def test_shards_of_trained_weights_hold_their_part_and_gather_a_layer(shape):
    whole, shard = Training(shape, None, gpu=True), Training(shape, None, gpu=True, shards=4)
    one, four = (memory(training, Load(60, 20), checkpointing=True) for training in (whole, shard))
    assert (four.gradients, four.optimizer) == (one.gradients // 4, one.optimizer // 4)
    assert four.activations == one.activations
    assert four.weights == shape.parameters, "4 bytes for each of a quarter, and no narrow copies of the rest"
    outside, layer = shape.parameters - shape.in_layers, shape.in_layers // 2
    assert four.temporaries - one.temporaries == 2 * (outside + 2 * layer) + (2 + 4) * layer


def test_frozen_weights_that_are_spread_leave_the_adapter_whole(shape):
    whole, shard = Training(shape, ADAPTER, gpu=True), Training(shape, ADAPTER, gpu=True, shards=4)
    one, four = (memory(training, Load(60, 20), checkpointing=True) for training in (whole, shard))
    assert one.weights - four.weights == 2 * shape.parameters * 3 // 4
    assert (four.gradients, four.optimizer) == (one.gradients, one.optimizer)


def test_a_chunk_of_logits_bounds_what_a_large_vocabulary_takes(shape):
    large = replace(shape, vocabulary=150_000)
    few, many = (
        memory(Training(large, ADAPTER, gpu=True), Load(8192, targets), checkpointing=True) for targets in (64, 8192)
    )
    assert many.temporaries - few.temporaries < 600 * 1024**2
