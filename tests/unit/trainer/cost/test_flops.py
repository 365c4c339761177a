"""Operations as they are reckoned against those that PyTorch counts while it computes them."""

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import GPT2Config, LlamaConfig, Qwen3Config

from finetune_trainer.cost.flops import Work, scoring_flops, training_flops
from finetune_trainer.cost.memory import Training
from finetune_trainer.data.tokens import Pair
from finetune_trainer.step.batch import pair_batch
from finetune_trainer.step.gradient import backward
from finetune_trainer.step.recipe import Level
from live import random_policy
from shapes import read_shape
from training import lora

LENGTHS = [(301, 100, 90), (201, 40, 50)]
WORDS = {"vocab_size": 501, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SIZES = WORDS | {
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
MODELS = {
    "llama": LlamaConfig(**SIZES),
    "qwen3, tied": Qwen3Config(**SIZES, head_dim=96, tie_word_embeddings=True),
    "gpt2": GPT2Config(**WORDS, n_embd=256, n_layer=3, n_head=4, attn_pdrop=0.0, resid_pdrop=0.0, embd_pdrop=0.0),
}
TARGETS = sum(preferred + other for _, preferred, other in LENGTHS)
SHARED = Work(
    tokens=sum(map(sum, LENGTHS)),
    targets=TARGETS,
    meetings=sum((p + c) ** 2 + r * (p + r) for p, c, r in LENGTHS),
)
PACKED = Work(
    tokens=sum(2 * p + c + r for p, c, r in LENGTHS),
    targets=TARGETS,
    meetings=sum((p + c) ** 2 + (p + r) ** 2 for p, c, r in LENGTHS),
)


def batch(level):
    rows = [Pair(1, *(np.full(length, 5, np.int32) for length in lengths)) for lengths in LENGTHS]
    return pair_batch(rows, level)


@pytest.mark.parametrize("adapter", [lora(rank=8), None], ids=["lora", "full"])
@pytest.mark.parametrize("name", MODELS)
def test_a_step_does_what_is_reckoned(name, adapter, tmp_path):
    shape = read_shape(random_policy(MODELS[name], None).base.causal, tmp_path)
    training = Training(shape, adapter, gpu=False)
    for work, level, checkpointing in (
        (SHARED, Level.SHARED, False),
        (PACKED, Level.PACKED, False),
        (SHARED, Level.SHARED, True),
    ):
        policy = random_policy(MODELS[name], adapter)
        policy.checkpointing(checkpointing)
        policy.training(True)
        with FlopCounterMode(display=False) as counted:
            backward(policy, batch(level), torch.sum, split=False)
        real = counted.get_total_flops()
        assert training_flops(training, work, checkpointing=checkpointing) == pytest.approx(real, rel=0.02)


def test_scoring_is_a_forward_pass(tmp_path):
    policy = random_policy(MODELS["llama"], lora(rank=8))
    training = Training(read_shape(random_policy(MODELS["llama"], None).base.causal, tmp_path), lora(rank=8), gpu=False)
    with FlopCounterMode(display=False) as counted, torch.no_grad():
        policy.score(batch(Level.SHARED))
    assert scoring_flops(training, SHARED) == counted.get_total_flops()


def test_a_shared_prompt_is_computed_once(tmp_path):
    training = Training(read_shape(random_policy(MODELS["llama"], None).base.causal, tmp_path), lora(rank=8), gpu=False)
    saved = training_flops(training, SHARED) / training_flops(training, PACKED)
    assert SHARED.tokens / PACKED.tokens * 0.95 < saved < 1
