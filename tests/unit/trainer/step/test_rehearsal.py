"""The rehearsal: what does not fit is known before the first step, and trying it leaves no trace."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from finetune_api.method import Preference
from finetune_trainer.data.tokens import CacheKind, Conversation, Pair, open_cache, write_cache
from finetune_trainer.failures import RunFailed
from finetune_trainer.run.rows import ConversationRows, PreferenceRows
from finetune_trainer.step import rehearsal
from finetune_trainer.step.packing import pack
from finetune_trainer.step.recipe import ROW_ALONE, Level, Recipe
from finetune_trainer.step.rehearsal import Rehearsal, most_expensive, tokens_within
from training import limit_memory, load, lora

LONGEST = 40
"""Tokens of the longest pair: a prompt of 20 and answers of 12 and 8, so 32 a sequence."""


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    def tokens(count):
        return np.arange(10, 10 + count, dtype=np.int32)

    rows = [Pair(100 + i, tokens(4 + i), tokens(3), tokens(5)) for i in range(6)]
    rows[3] = Pair(103, tokens(20), tokens(12), tokens(8))
    folder = tmp_path_factory.mktemp("pairs") / "cache"
    write_cache(folder, CacheKind.PREFERENCE, rows)
    return PreferenceRows(open_cache(folder), Preference(), None)


@pytest.fixture(scope="module")
def conversations(tmp_path_factory):
    rows = [Conversation(1 + i, np.arange(9, 39 + i, dtype=np.int32), np.arange(30 + i) > 25) for i in range(3)]
    folder = tmp_path_factory.mktemp("conversations") / "cache"
    write_cache(folder, CacheKind.CONVERSATION, rows)
    return ConversationRows(open_cache(folder))


@pytest.fixture
def policy(tiny_model):
    return load(tiny_model, lora=lora(dropout=0.5))


def plan(policy, rows, level=Level.SHARED, batch_size=8, packing=True):
    return Rehearsal(policy, rows, batch_size, packing).plan(level)


def test_what_fits_is_used_as_it_is(policy, pairs):
    passes = limit_memory(policy, 10_000)
    assert plan(policy, pairs) == Recipe(Level.SHARED, rehearsal.CPU_TOKENS)
    assert passes == [int(pairs.widths(Level.SHARED).sum())], "the most expensive micro-batch holds all six rows"
    assert not policy.base.causal.is_gradient_checkpointing


def test_without_packing_and_on_the_last_level_each_row_is_alone(policy, pairs):
    passes = limit_memory(policy, 10_000)
    assert plan(policy, pairs, packing=False) == Recipe(Level.SHARED, ROW_ALONE)
    assert plan(policy, pairs, level=Level.SINGLE) == Recipe(Level.SINGLE, ROW_ALONE)
    assert passes == [LONGEST, 32, 28]


def test_smaller_micro_batches_are_tried_before_anything_slower(policy, pairs):
    limit_memory(policy, 70)
    total = int(pairs.widths(Level.SHARED).sum())
    assert plan(policy, pairs) == Recipe(Level.SHARED, total // 2)


def test_then_activations_are_computed_again_and_pairs_are_split(policy, pairs):
    limit_memory(policy, LONGEST - 1, checkpointed=10_000)
    assert plan(policy, pairs) == Recipe(Level.SHARED, rehearsal.CPU_TOKENS, checkpointing=True)
    limit_memory(policy, LONGEST - 1, checkpointed=LONGEST - 1)
    recipe = plan(policy, pairs)
    assert (recipe.checkpointing, recipe.split) == (True, True)
    assert recipe.max_tokens < LONGEST


def test_what_does_not_fit_at_all_names_its_line_and_the_length_that_does(policy, pairs):
    limit_memory(policy, 25)
    with pytest.raises(RunFailed) as caught:
        plan(policy, pairs)
    assert caught.value.failure.exit_code == 14
    assert caught.value.failure.sentence == (
        "the row of line 103 with 32 tokens does not fit into the memory of CPU, rows of up to 25 tokens do:"
        " lower maxSeqLength to 25 or use more memory"
    )


def test_of_a_conversation_too_the_longest_length_that_fits_is_found(policy, conversations):
    limit_memory(policy, 17)
    with pytest.raises(RunFailed, match=r"line 3 with 32 tokens .* rows of up to 17 tokens do"):
        plan(policy, conversations, level=Level.PACKED)


def test_where_nothing_fits_the_model_is_too_large(policy, pairs):
    limit_memory(policy, 0)
    with pytest.raises(RunFailed, match="the model with its gradients and optimizer state does not fit") as caught:
        plan(policy, pairs)
    assert caught.value.failure.exit_code == 14


@pytest.mark.parametrize("limit", [10_000, 70, LONGEST - 1])
def test_a_rehearsal_leaves_no_trace(policy, pairs, limit):
    before = {name: p.detach().clone() for name, p in policy.root.named_parameters()}
    torch.manual_seed(11)
    expected = torch.rand(4)
    torch.manual_seed(11)
    limit_memory(policy, limit, checkpointed=limit)
    plan(policy, pairs)
    assert torch.equal(torch.rand(4), expected)
    assert all(p.grad is None for p in policy.root.parameters())
    assert all(torch.equal(p, before[name]) for name, p in policy.root.named_parameters())


def test_a_recipe_that_fits_stays_and_one_that_does_not_gets_easier(policy, pairs):
    limit_memory(policy, 70)
    tried = Rehearsal(policy, pairs, 8, True)
    assert tried.fitting(Recipe(Level.PACKED, 66, checkpointing=True)) == Recipe(Level.PACKED, 66, checkpointing=True)
    assert tried.fitting(Recipe(Level.SHARED, 80)) == Recipe(Level.SHARED, 36)


@given(
    widths=st.lists(st.integers(1, 100), min_size=1, max_size=40).map(np.array),
    max_tokens=st.integers(1, 300),
    most_rows=st.integers(1, 12),
    data=st.data(),
)
def test_the_most_expensive_micro_batch_is_one_that_a_plan_could_hold(widths, max_tokens, most_rows, data):
    rows = most_expensive(widths, max_tokens, most_rows)
    assert len(set(rows)) == len(rows) <= most_rows
    tokens = widths[list(rows)].sum()
    assert tokens <= max_tokens or len(rows) == 1
    step = data.draw(st.permutations(range(len(widths))))[:most_rows]
    others = [widths[list(some)].sum() for some in pack(step, widths, max_tokens)]
    assert tokens >= 0.8 * max(others)


def test_a_wide_row_alone_is_compared_with_narrow_ones_together():
    assert most_expensive(np.array([60, 50, 50]), 100, 8) == (1, 2)
    assert most_expensive(np.array([60, 50, 40]), 100, 8) == (0, 2), "of equal size the one with longer rows"
    assert most_expensive(np.array([10, 500, 90]), 100, 8) == (1,)
    assert most_expensive(np.array([10, 20, 30]), 100, 1) == (2,)


GIB = 2**30


@pytest.fixture
def gpu(monkeypatch):
    """Memory that is measured as on a GPU: 3 GiB for anything, 10 MiB a token, half of it when computed again."""

    class Gpu:
        free = 100 * GIB

    Gpu.seen = []

    def peak(_device, attempt):
        Gpu.passes.clear()
        fits = attempt()
        Gpu.seen.append(sum(Gpu.passes))
        per_token = 5 if Gpu.policy.base.causal.is_gradient_checkpointing else 10
        return fits, 3 * GIB + per_token * 2**20 * sum(Gpu.passes)

    monkeypatch.setattr(rehearsal, "measurable", lambda _device: True)
    monkeypatch.setattr(rehearsal, "free", lambda _device: Gpu.free)
    monkeypatch.setattr(rehearsal, "peak", peak)
    monkeypatch.setattr(rehearsal, "MEASURED_TOKENS", (60, 30))
    monkeypatch.setattr(rehearsal, "ROUNDED_TO", 8)
    return Gpu


def on(gpu, policy, limit=10_000, **limits):
    gpu.policy, gpu.passes = policy, limit_memory(policy, limit, **limits)
    return policy


def test_on_a_gpu_the_size_follows_from_two_measured_passes(gpu, policy, pairs):
    assert plan(on(gpu, policy), pairs) == Recipe(Level.SHARED, int((85 - 3) * 1024 / 10) // 8 * 8)
    assert gpu.seen == [60, 30], "the widest rows that fit into 60 and 30 tokens"


def test_on_a_gpu_it_is_measured_anew_once_activations_are_computed_again(gpu, policy, pairs):
    gpu.free = 4 * GIB
    recipe = plan(on(gpu, policy, LONGEST - 1, checkpointed=10_000), pairs)
    assert recipe == Recipe(Level.SHARED, int((0.85 * 4 - 3) * 1024 / 5) // 8 * 8, checkpointing=True)


def test_where_every_row_is_longer_than_what_is_to_be_measured_the_shortest_is(gpu, policy, conversations, monkeypatch):
    monkeypatch.setattr(rehearsal, "MEASURED_TOKENS", (20, 10))
    assert plan(on(gpu, policy), conversations, level=Level.PACKED).max_tokens > 500
    assert gpu.seen == [30, 30]


@pytest.mark.parametrize(
    ("free", "measured", "expected"),
    [
        (10 * GIB, [(2000, 2 * GIB), (6000, 4 * GIB)], 17408),
        (10 * GIB, [(2000, 2 * GIB), (2000, 2 * GIB)], 9216),
        (10 * GIB, [(2000, 2 * GIB)], 9216),
        (10 * GIB, [], 1024),
        (GIB, [(2000, 2 * GIB), (6000, 4 * GIB)], 1024),
        (1000 * GIB, [(2000, 2 * GIB), (6000, 4 * GIB)], 1997824),
    ],
    ids=["a line through two", "twice the same", "the larger did not fit", "none fitted", "little is free", "much is"],
)
def test_tokens_follow_from_two_measurements(free, measured, expected):
    assert tokens_within(free, measured) == expected


def test_more_than_makes_a_step_faster_is_never_planned(gpu, policy, pairs, monkeypatch):
    monkeypatch.setattr(rehearsal, "MOST_GPU_TOKENS", 512)
    assert plan(on(gpu, policy), pairs).max_tokens == 512
