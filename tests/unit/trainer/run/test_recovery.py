"""Interrupted and resumed equals uninterrupted, in processes that are really killed.

Every case trains once undisturbed, and once killed at random moments; then bytes of weights and optimizer, rows of
metrics, the best checkpoint, the early end and every digest must be the same. The seed of the moments is in the case's
name.
"""

from __future__ import annotations

import json
import os
import pickle
import random
import signal
import time

import pytest

from finetune_api.failures import FailureCode
from finetune_trainer.failures import RunFailed
from finetune_trainer.files import sha256_of
from finetune_trainer.layout import Layout
from finetune_trainer.out.publish import Publisher
from finetune_trainer.run.telling import Teller
from finetune_trainer.step import reference as reference_module
from runs import (
    Blow,
    Stopping,
    assert_same,
    attempt,
    keep_last_states,
    killed_at_random,
    newest_state,
    prepared,
    run,
    struck,
)
from training import metrics_rows, trainer_config

PLAIN = {"rank": 4, "alpha": 8, "dropout": 0.0, "trainableModules": ["all-linear"]}
DROPOUT = {**PLAIN, "dropout": 0.3}
STOPPING_EARLY = {"nEvals": 12, "earlyStopping": {"patience": 3, "warmupEvals": 1}}
ALONE = {"packing": False}
"""A micro-batch for each row: several in a step, whose gradients add up."""


@pytest.fixture(autouse=True)
def states_are_kept(monkeypatch):
    keep_last_states(monkeypatch)


@pytest.fixture(scope="module")
def early(tiny_model, data):
    """24 steps, an evaluation after every second; it stops improving before the end."""

    def settings(output, lora=PLAIN, **hyper):
        return trainer_config(
            tiny_model,
            data,
            validationFile=f"file://{data}/eval.jsonl",
            hyperparameters={"nEpochs": 8, "learningRate": 3e-2, "seed": 9, **hyper},
            lora=lora,
            evaluation=STOPPING_EARLY,
            checkpointing={"nCheckpoints": 3, "recoveryPeriodSeconds": 0},
            outputUri=f"file://{output}",
        )

    return settings


@pytest.mark.parametrize(
    ("seed", "kills", "changes"),
    [
        (1, [(1, 3)], {}),
        (2, [(4, 6)], {}),
        (3, [(6, 8), (12, 14)], {}),
        (4, [(2, 9), (10, 14)], {"lora": DROPOUT}),
        (5, [(2, 9), (10, 14)], ALONE),
    ],
    ids=["seed-1-epoch-1", "seed-2-epoch-2", "seed-3-evaluations", "seed-4-dropout", "seed-5-accumulation"],
)
def test_killed_at_random_moments_a_run_ends_as_if_it_never_was(early, whole_early, tmp_path, seed, kills, changes):
    numbers = random.Random(seed)
    broken = prepared(early(tmp_path / "out", **changes))
    for first, last in kills:
        killed_at_random(broken, first, last, numbers)
    report = run(broken)
    assert report.resumed_from_step >= kills[-1][0] > 0
    assert report.early_stop is not None
    assert report.early_stop.step < 24
    assert_same(tmp_path / "out", whole_early(**changes))


@pytest.fixture(scope="module")
def whole_early(early, tmp_path_factory):
    """What an undisturbed run of the same settings leaves."""
    made = {}

    def output(**changes):
        key = str(changes)
        if key not in made:
            folder = tmp_path_factory.mktemp("early") / "out"
            report = run(prepared(early(folder, **changes)))
            (best,) = (c.step for c in report.checkpoints if c.best)
            assert best == report.early_stop.best_step
            assert best not in (8, 16, 24), "the best is one checkpoint more than was asked for"
            made[key] = folder
        return made[key]

    return output


def test_the_best_that_the_saved_state_knows_stays_published_until_a_newer_state_is_saved(early, tmp_path):
    hourly = {"nCheckpoints": 1, "recoveryPeriodSeconds": 3600}
    config = early(tmp_path / "out")
    config = prepared(config.model_copy(update={"checkpointing": type(config.checkpointing).model_validate(hourly)}))
    folders = Layout.of(config).checkpoints
    stopped = struck(config, Blow(signal.SIGTERM, Teller, "stepped", lambda _teller, step, *_: step == 5))
    assert os.waitstatus_to_exitcode(stopped) == 3
    known = json.loads((newest_folder(config) / "state.json").read_text())["facts"]["position"]["best"]["step"]
    assert 0 < known < 8

    def is_surpassed(_publisher, _states):
        return (folders / "step-10").exists()

    assert struck(config, Blow(signal.SIGKILL, Publisher, "remove_superseded", is_surpassed)) == signal.SIGKILL
    assert (folders / f"step-{known}").is_dir()
    assert not (folders / "step-8").exists(), "no state knows it as the best"
    run(config)
    assert not (folders / f"step-{known}").exists()


def test_killed_while_the_reference_is_scored_it_is_scored_on(config, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(reference_module, "SHARD_SECONDS", 0.0)
    config = prepared(config)
    saves = iter(range(100))
    status = struck(config, Blow(signal.SIGKILL, reference_module, "_save", lambda *_: next(saves) == 1))
    assert os.WTERMSIG(status) == signal.SIGKILL
    shards = {path: path.stat().st_mtime_ns for path in Layout.of(config).reference.rglob("shard-*")}
    assert shards
    assert not Layout.of(config).metrics.exists(), "no evaluation yet, so the reference was not complete"
    killed_at_random(config, 3, 12, random.Random(6))
    assert {path: path.stat().st_mtime_ns for path in shards} == shards
    assert run(config).resumed_from_step >= 3
    assert_same(tmp_path / "out", whole)


def test_asked_to_stop_a_run_saves_its_last_step_within_ten_seconds(config, whole, tmp_path):
    hourly = {"nCheckpoints": 3, "recoveryPeriodSeconds": 3600}
    config = prepared(config.model_copy(update={"checkpointing": type(config.checkpointing).model_validate(hourly)}))
    stamp = tmp_path / "asked"

    def eighth(_teller, step, *_):
        if step == 8:
            stamp.touch()
        return step == 8

    status = struck(config, Blow(signal.SIGTERM, Teller, "stepped", eighth))
    assert time.time() - stamp.stat().st_mtime < 10
    assert os.waitstatus_to_exitcode(status) == 3
    assert newest_state(config) >= 8
    report = run(config)
    assert report.resumed_from_step >= 8
    assert_same(tmp_path / "out", whole)


def test_stopped_at_every_third_micro_batch_a_run_ends_as_if_it_never_was(config, whole, tmp_path):
    config = prepared(config)
    ends = [attempt(config, Stopping(3)) for _ in range(30)]
    assert ends.count(FailureCode.STOPPED) >= 8
    assert ends[-1] >= 20, "the last attempt went on from near the end"
    assert_same(tmp_path / "out", whole)


def newest_folder(config):
    return max(Layout.of(config).recovery.glob("step-*"), key=lambda f: int(f.name[5:]))


def flipped(folder):
    file = folder / "weights.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"?")


def truncated(folder):
    file = folder / "optimizer.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.parametrize("damage", [flipped, truncated])
def test_a_damaged_newest_state_is_skipped_with_a_warning(config, whole, tmp_path, damage):
    config = prepared(config)
    with pytest.raises(RunFailed):
        run(config, Stopping(20))
    newest = newest_folder(config)
    damage(newest)
    report = run(config)
    assert report.resumed_from_step == int(newest.name[5:]) - 1
    said = [w.message for w in report.warnings if w.reason == "RecoverySkipped"]
    assert [newest.name in message for message in said] == [True]
    assert_same(tmp_path / "out", whole)


def test_a_planted_pickle_is_never_opened(config, whole, tmp_path, monkeypatch):
    """Beside the state's own files, under the names that trainers load with pickle, and as a state of its own."""
    opened = tmp_path / "opened"

    class Bomb:
        def __reduce__(self):
            return (os.mkdir, (str(opened),))

    config = prepared(config)
    with pytest.raises(RunFailed):
        run(config, Stopping(20))
    recovery, newest = Layout.of(config).recovery, newest_folder(config)
    planted = recovery / f"step-{int(newest.name[5:]) + 1}"
    planted.mkdir()
    bomb = pickle.dumps(Bomb())
    for folder in (newest, planted):
        for name in ("optimizer.pt", "pytorch_model.bin", "training_args.bin", "rng_state.pth", "state.pkl"):
            (folder / name).write_bytes(bomb)
    (planted / "state.json").write_bytes(bomb)
    (planted / "manifest.json").write_text(
        json.dumps({name: sha256_of(planted / name) for name in ("state.json", "optimizer.pt")})
    )
    assert run(config).resumed_from_step == int(newest.name[5:])
    assert not opened.exists()
    assert_same(tmp_path / "out", whole)
    pickle.loads(bomb)  # the bomb works
    assert opened.exists()


def test_a_state_of_other_settings_is_never_resumed(config, tmp_path):
    config = prepared(config)
    with pytest.raises(RunFailed):
        run(config, Stopping(20))
    hyper = config.hyperparameters.model_copy(update={"learning_rate": 3e-3})
    report = run(config.model_copy(update={"hyperparameters": hyper}))
    assert report.resumed_from_step == 0
    assert "RecoverySkipped" in {w.reason for w in report.warnings}
    assert metrics_rows(tmp_path / "out" / "metrics.jsonl")[1]["train/learning_rate"] == 3e-3


def test_what_is_skipped_in_two_attempts_is_told_once(config):
    config = prepared(config)
    for calls in (20, 10):
        with pytest.raises(RunFailed):
            run(config, Stopping(calls))
        flipped(newest_folder(config))
    assert [w.reason for w in run(config).warnings].count("RecoverySkipped") == 1


@pytest.mark.parametrize("method", ["SFT", "DPO"])
def test_full_training_and_sft_stopped_and_killed_end_as_if_they_never_were(tiny_model, data, tmp_path, method):
    """Dropout needs an adapter, so SFT has one here and DPO trains every weight; several micro-batches a step."""
    adapter = {"trainingMethod": {"type": "SFT"}, "lora": DROPOUT}
    settings = trainer_config(
        tiny_model,
        data,
        validationFile=f"file://{data}/eval.jsonl",
        hyperparameters={"nEpochs": 3, "learningRate": 1e-2, "seed": 7},
        evaluation={"nEvals": 2},
        **(adapter if method == "SFT" else {"trainingKind": "Full", "lora": None}),
    )
    outputs = [tmp_path / "whole", tmp_path / "broken"]
    whole, broken = (prepared(settings.model_copy(update={"output_uri": f"file://{out}"})) for out in outputs)
    run(whole)
    killed_at_random(broken, 3, 6, random.Random(8))
    ends = [attempt(broken, Stopping(4)) for _ in range(12)]
    assert FailureCode.STOPPED in ends
    assert ends[-1] >= 6, "from the second epoch or later"
    assert_same(outputs[1], outputs[0])
