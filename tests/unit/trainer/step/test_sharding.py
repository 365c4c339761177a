"""Weights that are spread over processes compute what whole ones do, for every architecture and every plan."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from threading import Event

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from architectures import CONFIGURATIONS, VOCABULARY, build, policy_of
from finetune_api.method import Preference, TrainingKind
from finetune_trainer.data.tokens import CacheKind, Pair, open_cache, write_cache
from finetune_trainer.failures import RunFailed
from finetune_trainer.run.rows import PreferenceRows
from finetune_trainer.step import memory, model
from finetune_trainer.step.gradient import accumulate, scores
from finetune_trainer.step.model import Policy, load_policy
from finetune_trainer.step.ranks import ALONE, Ranks
from finetune_trainer.step.recipe import ROW_ALONE, Level, Recipe
from finetune_trainer.step.sharding import are_spread, gathered, shard, share_of, size_of
from runs import Stopping
from together import together
from training import disturb, limit_memory, load, lora, start_folders

ROWS = 7
CPU = torch.device("cpu")
RECIPES = [
    Recipe(Level.SINGLE, ROW_ALONE),
    Recipe(Level.PACKED, 40),
    Recipe(Level.SHARED, 40, checkpointing=True),
    Recipe(Level.SHARED, 25, checkpointing=True, split=True),
]
"""The third and the fourth have rows that lie alone, and of the fourth some are split."""
EVERY_LEVEL = "llama, tied", "qwen3", "qwen3-moe"
"""Models that can do all recipes; the others are tried with the one that every model can do."""
NO_DROPOUT = {"gpt2": {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}}


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    chance = np.random.default_rng(0)

    def tokens(least, most):
        return chance.integers(3, VOCABULARY, chance.integers(least, most)).astype(np.int32)

    pairs = [Pair(line, tokens(1, 12), tokens(1, 8), tokens(1, 8)) for line in range(ROWS)]
    folder = tmp_path_factory.mktemp("pairs") / "cache"
    write_cache(folder, CacheKind.PREFERENCE, pairs)
    return PreferenceRows(open_cache(folder), Preference(beta=0.3), -20 * torch.rand(ROWS, 2, dtype=torch.float64))


def spread(whole: Policy, ranks: Ranks) -> Policy:
    """The same policy with its weights spread over `ranks`."""
    config = whole.base.causal.config
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(config, dtype=whole.base.causal.dtype)
    if whole.base.causal.dtype is torch.float64:
        empty.set_experts_implementation("eager")
    shard(empty, whole.base.causal if ranks.first else None, CPU, ranks)
    return replace(policy_of(empty.eval()), ranks=ranks)


def gradients(policy: Policy) -> dict[str, torch.Tensor]:
    return {
        name: gathered(p.grad) if p.grad is not None else torch.zeros(p.shape) for name, p in policy.trainable.items()
    }


def agree(found: Policy, expected: Policy, rows: PreferenceRows, recipe: Recipe) -> None:
    """Sums and gradients over all rows are the same."""
    sums = []
    for policy in (found, expected):
        policy.checkpointing(recipe.checkpointing)
        for parameter in policy.trainable.values():
            parameter.grad = None
        sums.append(accumulate(policy, rows, recipe, range(ROWS), lambda: None))
    torch.testing.assert_close(*sums, rtol=1e-8, atol=1e-8)
    given, wanted = gradients(found), gradients(expected)
    assert given.keys() == wanted.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(given[name].to(gradient.dtype), gradient, rtol=1e-7, atol=1e-8, msg=name)


def test_every_architecture_has_the_gradients_of_whole_weights(rows):
    def work(ranks):
        tried = []
        for name in CONFIGURATIONS:
            whole = policy_of(build(name, **NO_DROPOUT.get(name, {})))
            shared = spread(whole, ranks)
            for recipe in RECIPES if name in EVERY_LEVEL else RECIPES[:1]:
                agree(shared, whole, rows, recipe)
                tried.append(f"{name}: {recipe}")
        return tried

    (tried, same) = together(2, work)
    assert tried == same
    assert len(tried) == len(CONFIGURATIONS) + len(EVERY_LEVEL) * (len(RECIPES) - 1)


def test_each_process_has_its_share_alone_and_more_processes_than_rows_of_a_tensor_do_no_harm(rows):
    def work(ranks):
        whole = policy_of(build("llama", num_attention_heads=1, num_key_value_heads=1, head_dim=2))
        shared = spread(whole, ranks)
        agree(shared, whole, rows, RECIPES[2])
        narrow = shared.trainable["model.layers.0.self_attn.k_proj.weight"]
        held = sum(p.to_local().numel() for p in shared.trainable.values())
        kept = sum(p.grad.to_local().numel() for p in shared.trainable.values())
        assert kept == held
        return [held, size_of(whole.root) // 8, len(share_of(narrow).tensor)]

    found = together(3, work)
    held, everything, narrow = zip(*found, strict=True)
    assert sum(held) == everything[0]
    assert max(held) < 0.4 * everything[0]
    assert sorted(narrow) == [0, 1, 1]


def test_no_plan_makes_them_wait_for_each_other(rows):
    """Fifty plans: any rows, any recipe, forward alone or back too, and now and then a stop that one of them hears."""

    def work(ranks):
        whole = policy_of(build("qwen3"))
        shared, chance, stopped = spread(whole, ranks), random.Random(3), 0
        for _ in range(50):
            some = chance.sample(range(ROWS), chance.randint(1, ROWS))
            recipe = replace(chance.choice(RECIPES), max_tokens=chance.choice((1, 20, 40, 80)))
            who, after = chance.randrange(ranks.size), chance.randint(1, 12)
            heard = Stopping(after) if who == ranks.rank else Event()
            run = chance.choice((accumulate, scores))
            shared.checkpointing(recipe.checkpointing)
            try:
                found = run(shared, rows, recipe, some, lambda heard=heard: stop(ranks, heard))
            except InterruptedError:
                stopped += 1
                continue
            torch.testing.assert_close(found, scores(whole, rows, recipe, some, lambda: None), rtol=1e-8, atol=1e-8)
        return stopped

    counts = together(3, work)
    assert len(set(counts)) == 1
    assert 0 < counts[0] < 50


def stop(ranks: Ranks, heard: Event) -> None:
    if ranks.any(heard.is_set()):
        raise InterruptedError


@pytest.mark.parametrize("continued", [False, True], ids=["new adapter", "continued adapter"])
def test_a_frozen_base_is_spread_where_it_is_too_large_and_its_adapter_is_not(
    tiny_model, rows, tmp_path, monkeypatch, continued
):
    if continued:
        earlier = load(tiny_model, lora=lora())
        disturb(earlier)
        earlier.saving()(tmp_path)
    start = start_folders(tiny_model, tmp_path if continued else None)
    alone = load_policy(start, TrainingKind.LORA, lora(), 7, CPU)
    monkeypatch.setattr(model, "most_frozen", lambda device: size_of(alone.base.causal) / 2)

    def work(ranks):
        policy = load_policy(start, TrainingKind.LORA, lora(), 7, CPU, ranks)
        assert policy.sharded
        assert all(share_of(parameter) is None for parameter in policy.trainable.values())
        assert any(share_of(parameter) for parameter in policy.base.causal.parameters())
        for one in (policy, alone):
            disturb(one)
            accumulate(one, rows, RECIPES[3], range(ROWS), lambda: None)
        for name, parameter in alone.trainable.items():
            torch.testing.assert_close(policy.trainable[name].grad, parameter.grad, rtol=1e-4, atol=1e-6)
        folder = tmp_path / f"saved-{ranks.rank}"
        folder.mkdir()
        policy.saving()(folder)
        policy.release()
        return (folder / "adapter_config.json").read_text()

    alone.saving()(tmp_path)
    assert together(2, work) == [(tmp_path / "adapter_config.json").read_text()] * 2


@pytest.mark.parametrize("name", ["llama, tied", "qwen3-moe"])
def test_what_is_saved_of_shares_is_what_is_saved_of_whole_weights(tmp_path, name):
    build(name, torch.float32).save_pretrained(tmp_path / "start")
    start = start_folders(tmp_path / "start")

    def save(folder, ranks=ALONE):
        policy = load_policy(start, TrainingKind.FULL, None, 7, CPU, ranks)
        write = policy.saving()
        if ranks.first:
            folder.mkdir()
            write(folder)
        return policy.sharded

    assert together(2, lambda ranks: save(tmp_path / "shared", ranks)) == [True, True]
    assert save(tmp_path / "whole") is False
    files = sorted(file.name for file in (tmp_path / "whole").iterdir())
    assert files == sorted(file.name for file in (tmp_path / "shared").iterdir())
    for file in files:
        assert (tmp_path / "shared" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes(), file


def test_full_training_goes_on_from_an_adapter_that_is_merged_before_its_weights_are_spread(tiny_model, tmp_path):
    earlier = load(tiny_model, lora=lora())
    disturb(earlier)
    earlier.saving()(tmp_path)
    start = start_folders(tiny_model, tmp_path)
    whole = load_policy(start, TrainingKind.FULL, None, 7, CPU)

    def work(ranks):
        shared = load_policy(start, TrainingKind.FULL, None, 7, CPU, ranks)
        for name, parameter in whole.trainable.items():
            assert torch.equal(gathered(shared.trainable[name]), parameter), name
        return len(shared.trainable)

    assert together(2, work) == [len(whole.trainable)] * 2


def test_a_base_that_fits_is_whole_on_each_process(tiny_model):
    assert memory.most_frozen(CPU) == math.inf

    def work(ranks):
        return load_policy(start_folders(tiny_model), TrainingKind.LORA, lora(), 7, CPU, ranks).sharded

    assert together(2, work) == [False, False]
    assert not are_spread(TrainingKind.FULL, ALONE)


def test_where_one_runs_out_of_memory_it_says_so_and_the_others_learn_that_it_has_ended(rows):
    def work(ranks):
        shared = spread(policy_of(build("llama")), ranks)
        if ranks.rank == 1:
            limit_memory(shared, 1, always=True)
        try:
            scores(shared, rows, RECIPES[1], range(ROWS), lambda: None)
        except RunFailed as end:
            return end.failure.sentence

    lost, said = together(2, work)
    assert lost == "PeerLost"
    assert said.startswith("the memory of CPU ran out on a micro-batch of ")
