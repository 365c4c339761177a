"""Memory that runs out later: the step is done again, easier, and is the step that it would have been."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from finetune_api.method import Preference
from finetune_trainer.data.tokens import CacheKind, Pair, open_cache, write_cache
from finetune_trainer.failures import RunFailed
from finetune_trainer.run.rows import PreferenceRows
from finetune_trainer.step.fitting import Fitter
from finetune_trainer.step.recipe import Level, Recipe
from training import disturb, limit_memory, load, lora

ROWS = 6
START = Recipe(Level.SHARED, 100)


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    random = np.random.default_rng(0)
    pairs = [Pair(100 + i, *(random.integers(10, 300, n).astype(np.int32) for n in (5 + i, 4, 6))) for i in range(ROWS)]
    folder = tmp_path_factory.mktemp("pairs") / "cache"
    write_cache(folder, CacheKind.PREFERENCE, pairs)
    return PreferenceRows(open_cache(folder), Preference(), -9 * torch.rand(ROWS, 2, dtype=torch.float64))


@pytest.fixture
def policy(tiny_model):
    policy = load(tiny_model, lora=lora(dropout=0.5))
    disturb(policy)
    return policy


class Run:
    """A fitter, what it said, and the sums and gradients of a step."""

    def __init__(self, policy, recipe=START):
        self.said = []
        self.fitter = Fitter(policy, recipe, self.said.append)

    def step(self, rows):
        sums = self.fitter.gradients(rows, range(ROWS), 5, lambda: None)
        return sums, {name: p.grad.clone() for name, p in self.fitter.policy.trainable.items()}


def test_a_step_that_ran_out_of_memory_is_the_step_of_smaller_micro_batches(tiny_model, policy, rows):
    limit_memory(policy, 60)
    run = Run(policy)
    sums, found = run.step(rows)
    assert run.fitter.recipe == replace(START, max_tokens=45)
    assert run.said == [
        "memory ran out on a micro-batch of 5 rows, 90 tokens: micro-batches of at most 100 tokens before,"
        " micro-batches of at most 45 tokens from now on"
    ]
    other = load(tiny_model, lora=lora(dropout=0.5))
    disturb(other)
    torch.rand(3)
    expected_sums, expected = Run(other, run.fitter.recipe).step(rows)
    assert torch.equal(sums, expected_sums)
    assert all(torch.equal(found[name], gradient) for name, gradient in expected.items()), "dropout and all"
    run.step(rows)
    assert len(run.said) == 1, "once it fits it fits"


def test_a_row_alone_is_computed_again_then_split(policy, rows):
    limit_memory(policy, 19, checkpointed=18)
    run = Run(policy)
    run.step(rows)
    assert run.fitter.recipe == Recipe(Level.SHARED, 18, checkpointing=True, split=True)
    ends = [sentence.rpartition(": ")[2].partition(" before, ")[2] for sentence in run.said]
    assert ends[-3:] == [
        "micro-batches of at most 19 tokens with activations computed again from now on",
        "micro-batches of at most 19 tokens with activations computed again, long pairs split from now on",
        "micro-batches of at most 18 tokens with activations computed again, long pairs split from now on",
    ]


def test_a_row_that_fits_in_no_way_ends_the_run_with_its_line(policy, rows):
    limit_memory(policy, 12)
    with pytest.raises(RunFailed, match=r"the row of line 105 with 16 tokens .* rows of up to 12 tokens do") as caught:
        Run(policy).step(rows)
    assert caught.value.failure.exit_code == 14


def test_scoring_without_gradients_gets_easier_too(policy, rows):
    expected = Run(policy).fitter.scores(rows, range(ROWS), lambda: None)
    limit_memory(policy, 19, always=True)
    run = Run(policy)
    found = run.fitter.scores(rows, range(ROWS), lambda: None)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    assert run.fitter.recipe.split
    assert not run.fitter.recipe.checkpointing, "nothing is kept that could be computed again"


def test_what_ends_the_step_is_no_lack_of_memory(policy, rows):
    run = Run(policy)

    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.fitter.gradients(rows, range(ROWS), 5, stop)
    assert run.said == []
