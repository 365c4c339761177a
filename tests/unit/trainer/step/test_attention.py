"""Shared and packed passes give the log-probabilities and gradients of stock attention on one sequence at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from architectures import build, policy_of
from finetune_trainer.data.tokens import Conversation
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


@pytest.mark.parametrize("name", ["softcap", "s_aux", "position_bias"])
def test_what_a_layer_needs_beyond_masks_is_refused_by_name(name):
    one = torch.zeros(1, 1, 1, 4)
    with pytest.raises(AttentionUnsupported, match=name):
        attention(torch.nn.Module(), one, one, one, None, pref_segments=(), **{name: 1.0})
