"""Each architecture ends on the level that it can do, by trying alone; what would silently go wrong is found."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import modeling_utils

from architectures import build, policy_of
from finetune_api.failures import FailureCode
from finetune_trainer.failures import RunFailed
from finetune_trainer.step import attention as attention_module
from finetune_trainer.step import model as model_module
from finetune_trainer.step.levels import choose_level
from finetune_trainer.step.logps import Head
from finetune_trainer.step.recipe import Level
from stock import compare, pairs

LONGEST, LINE = 40, 64
SHARED = {
    "llama": "sdpa",
    "llama, tied": "sdpa",
    "qwen3": "sdpa",
    "mistral": "sdpa",
    "gpt2": "sdpa",
    "qwen3-moe": "sdpa",
    "gemma3": "sdpa",
    "gemma2, no attention cap": "eager",
}
SINGLE = {
    "gemma2": "softcap",
    "gpt-oss": "s_aux",
    "llama4": "its scores are not those",
    "qwen3-next": "its scores are not those",
    "minimax-m3": "block_indices",
    "bloom": "cannot be replaced",
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", SHARED)
def test_prompts_are_shared_where_the_model_can(name, dtype):
    choice = choose_level(policy_of(build(name, dtype)), Level.SHARED, LONGEST, LINE)
    assert (choice.level, choice.problem) == (Level.SHARED, None)
    assert choice.policy.base.attention == SHARED[name]


@pytest.mark.parametrize("wanted", [Level.SHARED, Level.PACKED])
@pytest.mark.parametrize("name", SINGLE)
def test_each_sequence_is_alone_where_the_model_cannot_and_the_warning_says_why(name, wanted):
    choice = choose_level(policy_of(build(name, torch.float32)), wanted, LONGEST, LINE)
    assert choice.level is Level.SINGLE
    assert SINGLE[name] in choice.sentence
    assert "each sequence is computed alone" in choice.sentence


@pytest.mark.parametrize("name", SINGLE)
def test_scores_and_gradients_are_right_on_the_lowest_level_too(name):
    choice = choose_level(policy_of(build(name)), Level.SHARED, LONGEST, LINE)
    compare(choice.policy, pairs(), choice.level, 1e-12, 1e-6)


@pytest.mark.parametrize("name", ["gemma2", "gpt-oss"])
def test_numbers_alone_find_what_no_name_tells(name, monkeypatch):
    monkeypatch.setattr(attention_module, "ASKS_FOR_MORE", ())
    choice = choose_level(policy_of(build(name, torch.float32)), Level.SHARED, LONGEST, LINE)
    assert choice.level is Level.SINGLE
    assert "its scores are not those" in choice.sentence


def test_stock_attention_that_leaves_something_out_gives_way_to_eager(monkeypatch):
    policy = policy_of(build("llama", torch.float32))
    functions = modeling_utils.ALL_ATTENTION_FUNCTIONS
    stock = functions["sdpa"]
    lossy = lambda *given, **named: stock(*given, **named | {"scaling": named["scaling"] / 2})  # noqa: E731
    monkeypatch.setitem(functions._global_mapping, "sdpa", lossy)
    choice = choose_level(policy, Level.SHARED, LONGEST, LINE)
    assert (choice.level, choice.policy.base.attention) == (Level.SHARED, "eager")


def test_built_in_attention_with_jumping_positions_is_found(monkeypatch):
    """It takes the non-preferred answer for a row of its own, cut off from its prompt; packed rows it does right."""
    monkeypatch.setattr(model_module, "PREF_VARLEN", "sdpa")
    choice = choose_level(policy_of(build("llama", torch.float32)), Level.SHARED, LONGEST, LINE)
    assert choice.level is Level.PACKED
    assert "the prompt of a pair is computed twice" in choice.sentence


def altered(monkeypatch, change):
    """Choose a level under an attention whose segments went through `change`."""
    real = attention_module.Layout.of
    monkeypatch.setattr(attention_module.Layout, "of", lambda segments: real(change(segments)))
    return choose_level(policy_of(build("llama", torch.float32)), Level.SHARED, LONGEST, LINE)


def test_an_answer_that_sees_the_other_is_found(monkeypatch):
    choice = altered(monkeypatch, lambda ss: [s._replace(prefix=s.prefix and s.start - s.prefix_start) for s in ss])
    assert choice.level is Level.PACKED


def test_a_row_that_sees_its_neighbour_is_found(monkeypatch):
    def leak(segments):
        return [s if s.prefix or not s.start else s._replace(prefix_start=0, prefix=s.start) for s in segments]

    choice = altered(monkeypatch, leak)
    assert choice.level is Level.SINGLE
    assert "sees the row before it" in choice.sentence or "its scores are not those" in choice.sentence


@pytest.mark.parametrize(("longest", "level"), [(60, Level.SINGLE), (25, Level.SHARED)])
def test_a_mask_that_bites_late_matters_only_where_rows_are_long_enough(longest, level):
    """Llama 4 attends within chunks; rows that end before the first chunk does never notice."""
    model = build("llama4", torch.float32, attention_chunk_size=30)
    choice = choose_level(policy_of(model), Level.SHARED, longest, LINE)
    assert choice.level is level


@pytest.mark.parametrize(("line", "level"), [(96, Level.SINGLE), (55, Level.SHARED)])
def test_what_depends_on_the_place_in_the_line_is_found_at_the_length_of_a_pass(line, level):
    """Llama 4 scales queries by their place in the line, not in their sequence."""
    model = build("llama4", torch.float32, attention_chunk_size=1000, floor_scale=60, attn_scale=2.0)
    choice = choose_level(policy_of(model), Level.SHARED, 24, line)
    assert choice.level is level


LONG_ROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 4,
    "long_factor": [4.0] * 4,
    "original_max_position_embeddings": 30,
}


@pytest.mark.parametrize(("longest", "level"), [(60, Level.SINGLE), (30, Level.SHARED)])
def test_positions_that_the_longest_row_of_a_pass_decides_are_found(longest, level):
    """LongRoPE has one encoding for a whole pass, by its longest sequence."""
    model = build("phi3", max_position_embeddings=200, rope_parameters=LONG_ROPE)
    choice = choose_level(policy_of(model), Level.SHARED, longest, LINE)
    assert choice.level is level
    assert level is Level.SHARED or "beside a row of more than 30 tokens" in choice.sentence
    compare(choice.policy, pairs([(20, 3, 4), (12, longest - 12, 5), (2, 1, 3)]), choice.level, 1e-12, 1e-6)


def test_a_model_whose_own_log_probabilities_cannot_be_had_is_refused(monkeypatch):
    policy = policy_of(build("llama", torch.float32))
    object.__setattr__(policy, "head", Head(policy.head.module, scale=0.5))
    with pytest.raises(RunFailed, match="its scores are not those") as caught:
        choose_level(policy, Level.SHARED, LONGEST, LINE)
    assert caught.value.failure.code is FailureCode.MODEL_UNSUPPORTED


def test_an_error_of_the_models_own_code_is_told_as_one():
    """A layer with an indexer takes it for granted that there is a mask."""
    model = build("llama", torch.float32)
    needs_mask = lambda _layer, _args, kwargs: kwargs["attention_mask"].dtype if "pref_segments" in kwargs else None  # noqa: E731
    model.model.layers[0].register_forward_pre_hook(needs_mask, with_kwargs=True)
    choice = choose_level(policy_of(model), Level.SHARED, LONGEST, LINE)
    assert choice.level is Level.SINGLE
    assert "its code fails on such a pass: 'NoneType' object has no attribute 'dtype'" in choice.sentence


def test_trying_costs_few_passes(monkeypatch):
    policy = policy_of(build("llama", torch.float32))
    tokens = []
    policy.backbone.register_forward_hook(
        lambda _module, _args, kwargs, _out: tokens.append(np.prod(kwargs["input_ids"].shape)), with_kwargs=True
    )
    choose_level(policy, Level.SHARED, 10_000, 10_000)
    assert len(tokens) <= 10
    assert max(tokens) < 64
