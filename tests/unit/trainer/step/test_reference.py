"""The reference: scored once, with the starting weights, kept in shards that a restart goes on with."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from finetune_trainer.data.tokens import Pair
from finetune_trainer.failures import RunFailed
from finetune_trainer.step import reference
from finetune_trainer.step.batch import pair_batch
from finetune_trainer.step.recipe import Level
from finetune_trainer.step.reference import reference_scores
from training import disturb, load, lora

ROWS = 10
GROUPS = ((3, 1), (4,), (0, 2, 5), (9,), (6, 7), (8,))


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(reference, "SHARD_SECONDS", 0)


@pytest.fixture(scope="module")
def pairs():
    random = np.random.default_rng(0)

    def tokens():
        return random.integers(10, 300, random.integers(1, 9)).astype(np.int32)

    return [Pair(100 + line, tokens(), tokens(), tokens()) for line in range(ROWS)]


@pytest.fixture(scope="module")
def policy(tiny_model):
    return load(tiny_model, lora=lora(dropout=0.5))


class Interrupted(Exception):
    pass


def score(policy, pairs, folder, least=ROWS, level=Level.SHARED):
    """Score; interrupted once `least` rows are done. Returns the scores and the rows that were asked for."""
    asked = []

    @torch.no_grad()
    def sums(rows):
        if len(asked) >= least:
            raise Interrupted
        asked.extend(rows)
        policy.training(False)
        return policy.score(pair_batch([pairs[row] for row in rows], level))

    told = []
    found = reference_scores(
        pairs.__getitem__,
        GROUPS,
        sums,
        folder,
        lambda done, rows: told.append((done, rows)),
        "file:///model",
        "validationFile",
    )
    assert told == sorted(told)
    assert all(rows == ROWS for _, rows in told)
    return found, asked


def test_scores_are_those_of_the_starting_weights_without_dropout(policy, pairs, tmp_path):
    policy.training(True)
    scores, _ = score(policy, pairs, tmp_path)
    policy.training(False)
    with torch.no_grad():
        expected = torch.stack([policy.score(pair_batch([pair], Level.SINGLE)) for pair in pairs])
    assert scores.dtype is torch.float64
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-4)


def test_a_restart_loads_what_is_there_and_scores_what_is_missing(policy, pairs, tmp_path):
    whole, asked = score(policy, pairs, tmp_path / "whole")
    assert asked == [row for group in GROUPS for row in group]
    with pytest.raises(Interrupted):
        score(policy, pairs, tmp_path / "stopped", least=3)
    resumed, asked = score(policy, pairs, tmp_path / "stopped")
    assert asked == [0, 2, 5, 9, 6, 7, 8], "the rows of the groups that were done are kept"
    assert torch.equal(resumed, whole)


def test_what_was_scored_is_kept_however_short_it_took(policy, pairs, tmp_path, monkeypatch):
    monkeypatch.setattr(reference, "SHARD_SECONDS", 3600)
    with pytest.raises(Interrupted):
        score(policy, pairs, tmp_path, least=3)
    assert len(list(tmp_path.iterdir())) == 1
    assert score(policy, pairs, tmp_path)[1] == [0, 2, 5, 9, 6, 7, 8]


def test_on_another_level_only_what_is_missing_is_scored(policy, pairs, tmp_path):
    whole, _ = score(policy, pairs, tmp_path / "whole")
    with pytest.raises(Interrupted):
        score(policy, pairs, tmp_path / "moved", least=6)
    moved, asked = score(policy, pairs, tmp_path / "moved", level=Level.PACKED)
    assert asked == [9, 6, 7, 8]
    assert torch.equal(moved[:6], whole[:6])
    torch.testing.assert_close(moved, whole, rtol=0, atol=1e-4)


def test_nothing_is_scored_again_when_all_is_there(tiny_model, policy, pairs, tmp_path):
    whole, _ = score(policy, pairs, tmp_path)
    moved = load(tiny_model, lora=lora())
    disturb(moved)
    again, asked = score(moved, pairs, tmp_path)
    assert asked == []
    assert torch.equal(again, whole)


def test_a_damaged_shard_is_scored_again(policy, pairs, tmp_path):
    whole, _ = score(policy, pairs, tmp_path)
    (tmp_path / "shard-000002.safetensors").write_bytes(b"half")
    again, asked = score(policy, pairs, tmp_path)
    assert asked == [0, 2, 5]
    assert torch.equal(again, whole)
    assert score(policy, pairs, tmp_path)[1] == []


def test_scores_of_other_tokens_are_refused(policy, pairs, tmp_path):
    score(policy, pairs, tmp_path)
    others = [*pairs[:5], replace(pairs[5], preferred=pairs[5].preferred + 1), *pairs[6:]]
    with pytest.raises(RunFailed, match="are about other rows: remove that folder"):
        score(policy, others, tmp_path)


def test_a_score_that_is_not_finite_names_its_row(tiny_model, pairs, tmp_path):
    broken = load(tiny_model)
    embedding = broken.root.get_input_embeddings()
    odd = [*pairs[:4], replace(pairs[4], preferred=np.array([310], np.int32)), *pairs[5:]]
    with torch.no_grad():
        embedding.weight[310] = torch.nan
    odd[4] = replace(odd[4], prompt=np.array([310], np.int32))
    with pytest.raises(RunFailed, match="line 104 of validationFile is not finite"):
        score(broken, odd, tmp_path)


def test_the_reference_of_a_continued_adapter_is_that_adapter(tiny_model, pairs, tmp_path):
    first = load(tiny_model, lora=lora())
    disturb(first)
    (tmp_path / "adapter").mkdir()
    first.saving()(tmp_path / "adapter")
    continued, _ = score(load(tiny_model, lora=lora(), adapter=tmp_path / "adapter"), pairs, tmp_path / "continued")
    expected, _ = score(first, pairs, tmp_path / "first")
    base, _ = score(load(tiny_model), pairs, tmp_path / "base")
    assert torch.equal(continued, expected)
    assert (continued - base).abs().max() > 1e-2
