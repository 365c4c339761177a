"""However many processes train as one, it is the same training: losses, weights, evaluations, what is published."""

from __future__ import annotations

import os
import random
import shutil
from dataclasses import replace
from threading import Event

import pytest
import torch

from finetune_api.trainer import Stage
from finetune_trainer.data.tokens import open_cache
from finetune_trainer.layout import Layout
from finetune_trainer.out.progress import Reporter
from finetune_trainer.run.rows import PreferenceRows
from finetune_trainer.run.train import train
from finetune_trainer.step.fitting import Fitter
from finetune_trainer.step.gradient import scores
from finetune_trainer.step.ranks import Ranks
from finetune_trainer.step.recipe import Level, Recipe
from finetune_trainer.step.rehearsal import Rehearsal
from runs import Stopping, prepared, run
from together import PEER_LOST, assert_alike, outcome, together, train_together
from training import (
    conversation_rows,
    limit_memory,
    load,
    lora,
    preference_rows,
    trainer_config,
    write_jsonl,
)

SFT = {"trainingMethod": {"type": "SFT"}}
FULL = {"trainingKind": "Full", "lora": None}
METHODS = {"DPO": {}, "DPO full": FULL, "SFT": SFT}
ROWS, VALIDATION_ROWS, BATCH = 10, 7, 4
"""The last step of an epoch holds 2 rows, and neither number divides by 4 processes."""


def config_for(model, folder, method="DPO", **changes):
    folder.mkdir(exist_ok=True)
    make = conversation_rows if method == "SFT" else preference_rows
    write_jsonl(folder / "train.jsonl", make(ROWS))
    write_jsonl(folder / "validation.jsonl", make(VALIDATION_ROWS, seed=1))
    fields = {
        "validationFile": f"file://{folder}/validation.jsonl",
        "evaluation": {"nEvals": 2},
        "batchSize": BATCH,
        "hyperparameters": {"nEpochs": 2, "learningRate": 1e-3, "seed": 7},
        **METHODS[method],
        **changes,
    }
    return prepared(trainer_config(model, folder, **fields))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("batch", [BATCH, 2], ids=["batch 4", "batch 2, fewer than processes"])
def test_the_number_of_processes_changes_nothing(tiny_model, tmp_path, method, batch):
    alone = config_for(tiny_model, tmp_path / "alone", method, batchSize=batch)
    run(alone)
    for size in (2, 4):
        config = config_for(tiny_model, tmp_path / str(size), method, batchSize=batch)
        assert train_together(config, size) == [0] * size
        assert_alike(outcome(config), outcome(alone))


@pytest.mark.parametrize("method", ["DPO", "DPO full"])
def test_what_two_have_begun_one_and_four_end(tiny_model, tmp_path, method):
    whole = config_for(tiny_model, tmp_path / "whole", method)
    run(whole)
    begun = config_for(tiny_model, tmp_path / "begun", method)
    assert train_together(begun, 2, lambda ranks: Stopping(7) if ranks.rank == 1 else Event()) == ["Stopped"] * 2
    for size in (1, 4):
        folder = tmp_path / f"ended-{size}"
        shutil.copytree(tmp_path / "begun", folder)
        ended = config_for(tiny_model, folder, method)
        (resumed, *others) = train_together(ended, size)
        assert 0 < resumed < 6
        assert others == [resumed] * (size - 1)
        assert_alike(outcome(ended), outcome(whole))


def rows_of(config):
    method = config.training_method
    return PreferenceRows(open_cache(Layout.of(config).prepared / "train"), method.preference, None)


def test_no_plan_makes_them_wait_for_each_other(tiny_model, tmp_path):
    """Two hundred plans: any rows, any room, and now and then a stop that one of them hears."""
    rows = rows_of(config_for(tiny_model, tmp_path))
    policy = load(tiny_model, lora=lora())
    expected = scores(policy, rows, Recipe(Level.SHARED, 4096), range(ROWS), lambda: None).view(-1, 2)

    def work(ranks):
        same, chance, stopped = replace(policy, ranks=ranks), random.Random(3), 0
        for _ in range(200):
            some = chance.sample(range(ROWS), chance.randint(1, ROWS))
            recipe = Recipe(Level.SHARED, chance.choice((1, 40, 80, 200)))
            who, after = chance.randrange(ranks.size), chance.randint(1, 12)
            heard = Stopping(after) if who == ranks.rank else Event()
            try:
                found = scores(same, rows, recipe, some, lambda heard=heard: stop(ranks, heard))
            except InterruptedError:
                stopped += 1
                continue
            torch.testing.assert_close(found.view(-1, 2), expected[some], rtol=1e-5, atol=1e-5)
        return stopped

    counts = together(3, work)
    assert len(set(counts)) == 1
    assert 0 < counts[0] < 200


def stop(ranks: Ranks, heard: Event) -> None:
    if ranks.any(heard.is_set()):
        raise InterruptedError


def test_too_little_memory_on_one_makes_it_easier_for_all(tiny_model, tmp_path):
    rows = rows_of(config_for(tiny_model, tmp_path))
    policy = load(tiny_model, lora=lora())
    expected = scores(policy, rows, Recipe(Level.SHARED, 4096), range(ROWS), lambda: None)

    def work(ranks):
        if ranks.rank == 1:
            limit_memory(policy, int(rows.widths(Level.SHARED).max()) + 10, always=True)
        said: list[str] = []
        fitter = Fitter(replace(policy, ranks=ranks), Recipe(Level.SHARED, 4096), said.append)
        torch.testing.assert_close(fitter.scores(rows, range(ROWS), lambda: None), expected, rtol=1e-5, atol=1e-5)
        return [str(fitter.recipe), len(said)]

    first, second = together(2, work)
    assert first == second
    assert first[1] > 0


def test_one_that_is_lost_ends_the_others_at_once(tiny_model, tmp_path):
    config = config_for(tiny_model, tmp_path)

    def work(ranks):
        if ranks.rank == 1:
            ending = Stopping(9)
            ending.is_set = lambda: os._exit(137) if Stopping.is_set(ending) else False
        else:
            ending = Event()
        train(config, Reporter(config.job, Stage.TRAIN, "pod-1"), ending, ranks)

    assert together(2, work, dies=1) == [PEER_LOST]
    assert train_together(config, 1)[0] > 0, "what was saved before is gone on from"


def test_what_one_has_no_room_for_all_plan_without(tiny_model, tmp_path):
    """The first rehearses on a process that has room for anything, the second on one that has not."""
    rows = rows_of(config_for(tiny_model, tmp_path))
    policy = load(tiny_model, lora=lora())
    longest = int(rows.widths(Level.SHARED).max())

    def work(ranks):
        limit_memory(policy, longest - 1 if ranks.rank == 1 else 10**6, checkpointed=10**6, always=True)
        return str(Rehearsal(replace(policy, ranks=ranks), rows, BATCH, True).plan(Level.SHARED))

    first, second = together(2, work)
    assert first == second
    assert "activations computed again" in first
