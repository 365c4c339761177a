"""Shared and packed passes give the log-probabilities and gradients of stock attention on one sequence at a time."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.nn.attention import varlen
from torch.nn.functional import scaled_dot_product_attention

from architectures import build, policy_of
from finetune_trainer.data.tokens import Conversation
from finetune_trainer.step import attention as attention_module
from finetune_trainer.step.attention import AttentionUnsupported, attention
from finetune_trainer.step.batch import conversation_batch, pair_batch
from finetune_trainer.step.recipe import Level
from stock import SIZES, compare, gradients, pairs, stock_sums

SDPA = ["llama", "llama, tied", "qwen3", "mistral", "gemma3", "qwen3-moe", "gpt2"]
EAGER = ["gemma2, no attention cap"]


@pytest.mark.parametrize("level", [Level.SHARED, Level.PACKED])
@pytest.mark.parametrize("name", SDPA)
def test_scores_and_gradients_are_those_of_stock_attention(name, level):
    compare(policy_of(build(name)), pairs(), level, 1e-12, 1e-6)


@pytest.mark.parametrize("level", [Level.SHARED, Level.PACKED])
@pytest.mark.parametrize("name", EAGER)
def test_they_are_those_of_eager_attention_where_there_is_no_other(name, level):
    """Eager attention takes its softmax in fp32 whatever the precision of the model."""
    compare(policy_of(build(name)), pairs(), level, 5e-6, 5e-6)


@pytest.mark.parametrize("size", SIZES)
def test_each_pair_alone_too(size):
    compare(policy_of(build("llama")), pairs([size, (20, 11, 12)])[:1], Level.SHARED, 1e-12, 1e-6)


@pytest.mark.parametrize("level", Level)
def test_packed_conversations_are_those_of_stock_attention(level):
    policy = policy_of(build("mistral"))
    rows = []
    for row in pairs():
        tokens = np.concatenate([row.prompt, row.preferred])
        rows.append(Conversation(row.line, tokens, np.arange(len(tokens)) >= len(row.prompt)))
    sums = policy.score(conversation_batch(rows, level))
    torch.testing.assert_close(sums, stock_sums(policy, pairs())[::2], rtol=0, atol=1e-12)


def test_checkpointed_layers_get_the_layout_too():
    policy = policy_of(build("qwen3"))
    expected = gradients(policy, policy.score(pair_batch(pairs(), Level.SHARED)))
    policy.checkpointing(True)
    policy.training(True)
    for name, theirs in gradients(policy, policy.score(pair_batch(pairs(), Level.SHARED))).items():
        torch.testing.assert_close(theirs, expected[name], rtol=0, atol=1e-12)


def test_a_call_without_a_layout_is_refused():
    policy = policy_of(build("llama"))
    policy.score(pair_batch(pairs(), Level.SHARED))
    with pytest.raises(AttentionUnsupported, match="no layout"):
        policy.root(input_ids=torch.arange(8)[None])
    assert policy.as_loaded()(input_ids=torch.arange(8)[None]).logits.isfinite().all()


@pytest.mark.parametrize("name", ["softcap", "s_aux", "position_bias", "indices"])
def test_what_a_layer_needs_beyond_masks_is_refused_by_name(name):
    one = torch.zeros(1, 1, 1, 4)
    with pytest.raises(AttentionUnsupported, match=name):
        attention(torch.nn.Module(), one, one, one, None, pref_segments=(), **{name: 1.0})


def test_a_mask_that_a_layer_made_itself_is_refused():
    """Layers with an indexer keep the tokens that it picked apart from the rest by a mask."""
    one = torch.zeros(1, 1, 1, 4)
    with pytest.raises(AttentionUnsupported, match="a mask of its own"):
        attention(torch.nn.Module(), one, one, one, torch.ones(1, 1, 1, 1, dtype=torch.bool), pref_segments=())


def kernel(query, key, value, cu_q, cu_k, max_q, max_k, *, scale, window_size, enable_gqa=False):
    """What torch's variable-length attention promises, written out: causal, aligned at the last query and key."""
    assert (cu_q[-1], cu_k[-1], cu_k[-1]) == (len(query), len(key), len(value))
    parts = []
    for (q, q_end), (k, k_end) in zip(pairwise(cu_q.tolist()), pairwise(cu_k.tolist()), strict=True):
        assert q_end - q <= max_q
        assert k_end - k <= max_k
        places = torch.arange(k_end - k - (q_end - q), k_end - k)[:, None] - torch.arange(k_end - k)
        seen = (places >= 0) & ((places <= window_size[0]) | (window_size[0] < 0))
        of_head = (t.transpose(0, 1) for t in (query[q:q_end], key[k:k_end], value[k:k_end]))
        out = scaled_dot_product_attention(*of_head, attn_mask=seen, scale=scale, enable_gqa=enable_gqa)
        parts.append(out.transpose(0, 1))
    return torch.cat(parts)


@pytest.mark.parametrize("window", [None, 6])
@pytest.mark.parametrize("level", [Level.SHARED, Level.PACKED])
def test_the_kernel_of_a_gpu_is_told_the_same(monkeypatch, level, window):
    monkeypatch.setattr(varlen, "varlen_attn", kernel)
    attention_module._varlen_arguments.cache_clear()
    (one,) = pair_batch(pairs(), level).passes
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(1, heads, one.tokens, 8, generator=generator, dtype=torch.float64) for heads in (4, 2, 2)
    )
    told = attention_module._varlen(query, key, value, 0.3, window, one.layout.arguments())
    ours, _ = attention(
        torch.nn.Module(), query, key, value, None, scaling=0.3, sliding_window=window, **one.layout.arguments()
    )
    attention_module._varlen_arguments.cache_clear()
    torch.testing.assert_close(told, ours, rtol=0, atol=1e-12)
