"""Recovery states: whole or not there, the newest two, nothing pickled."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pickle
import pickletools
import shutil
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
import torch

from buckets import Death, Died
from finetune_trainer.mirror import StoreMirror
from finetune_trainer.out import checkpoint
from finetune_trainer.out.checkpoint import RecoveryState, RecoveryStore


def state(step):
    tensors = {"weights": {"a": torch.full((3,), float(step))}, "optimizer": {"step:a": torch.tensor(float(step))}}
    return RecoveryState(step, tensors, {"tokens": 10 * step})


@pytest.fixture
def told():
    return []


@pytest.fixture
def store(tmp_path, told):
    store = RecoveryStore(tmp_path / "recovery", "plan", told.append)
    yield store
    store.close()


def save(store, *steps):
    for step in steps:
        store.save(state(step))
    store.wait()


def test_the_newest_state_comes_back_as_it_was(store, told):
    save(store, 1, 2)
    found, skipped = store.newest()
    assert (found.step, found.facts, skipped) == (2, {"tokens": 20}, [])
    assert torch.equal(found.tensors["weights"]["a"], torch.full((3,), 2.0))
    assert found.tensors["optimizer"]["step:a"].shape == ()
    assert told == [1, 2]


def test_the_newest_two_are_kept_also_beyond_step_9(store, tmp_path):
    save(store, 8, 9, 10, 11)
    assert {folder.name for folder in (tmp_path / "recovery").iterdir()} == {"step-10", "step-11"}


def test_states_beyond_the_step_that_is_saved_are_none_of_the_newest_two(store, tmp_path):
    """They were skipped, being damaged or of another plan: else this run's own would be removed for them."""
    other = RecoveryStore(tmp_path / "recovery", "another plan", lambda _step: None)
    save(other, 8, 9)
    other.close()
    save(store, 1)
    assert store.newest()[0].step == 1
    save(store, 2, 3)
    assert {folder.name for folder in (tmp_path / "recovery").iterdir()} == {"step-2", "step-3"}


def test_killed_while_a_state_takes_the_place_of_one_of_the_same_step_there_is_one(store, tmp_path, monkeypatch):
    """The only one, where states are saved by the hour; and then again, when its step's evaluation is done."""
    save(store, 5)

    def killed(*_args):
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "replace", killed)
    store.save(state(5))
    with pytest.raises(KeyboardInterrupt):
        store.wait()
    monkeypatch.undo()
    again = RecoveryStore(tmp_path / "recovery", "plan", lambda _step: None)
    assert again.newest()[0].step == 5
    assert {folder.name for folder in (tmp_path / "recovery").iterdir()} == {"step-5"}
    save(again, 5)
    again.close()
    assert {folder.name for folder in (tmp_path / "recovery").iterdir()} == {"step-5"}


def test_a_state_is_what_it_was_when_it_was_given(store):
    given = state(1)
    store.save(given)
    given.tensors["weights"]["a"].fill_(9.0)
    store.wait()
    assert torch.equal(store.newest()[0].tensors["weights"]["a"], torch.full((3,), 1.0))


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "manifest.json").unlink(),
        lambda folder: (folder / "manifest.json").write_text("{"),
        lambda folder: (folder / "manifest.json").write_text("[]"),
        lambda folder: (folder / "manifest.json").write_text("{}"),
        lambda folder: (folder / "weights.safetensors").unlink(),
        lambda folder: (folder / "optimizer.safetensors").write_bytes(b""),
        lambda folder: (folder / "state.json").write_text(json.dumps({"step": 7})),
        shutil.rmtree,
    ],
    ids=[
        "no manifest",
        "half a manifest",
        "a list",
        "an empty one",
        "a file gone",
        "a file empty",
        "a file changed",
        "all gone",
    ],
)
def test_a_damaged_state_is_skipped_for_the_one_before(store, tmp_path, damage):
    save(store, 1, 2)
    damage(tmp_path / "recovery" / "step-2")
    found, skipped = store.newest()
    assert found.step == 1
    assert len(skipped) == (1 if (tmp_path / "recovery" / "step-2").exists() else 0)
    save(store, 2)
    assert store.newest()[0].step == 2, "and is replaced"


def test_a_state_of_another_plan_is_never_loaded(store, tmp_path):
    save(store, 1)
    other = RecoveryStore(tmp_path / "recovery", "another plan", lambda _step: None)
    found, skipped = other.newest()
    other.close()
    assert found is None
    assert skipped == ["the recovery state step-1 was skipped: it belongs to other data or settings"]


def test_a_write_that_fails_is_heard_of_and_leaves_the_earlier_state(store, monkeypatch):
    save(store, 1)

    def full(*_args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    store.save(state(2))
    with pytest.raises(OSError, match="No space left"):
        store.wait()
    monkeypatch.undo()
    assert store.newest()[0].step == 1
    save(store, 2)
    assert store.newest()[0].step == 2


def test_nothing_is_pickled(store, tmp_path):
    save(store, 1)
    for file in (tmp_path / "recovery" / "step-1").iterdir():
        assert file.suffix in (".json", ".safetensors")
        with pytest.raises(ValueError):
            list(pickletools.genops(file.read_bytes()))


def test_what_is_no_state_is_left_alone_and_never_opened(store, tmp_path):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "opened",))

    save(store, 1)
    trap = pickle.dumps({"step": 9, "weights": Trap()})
    (tmp_path / "recovery" / "step-1" / "optimizer.pt").write_bytes(trap)
    (tmp_path / "recovery" / "step-1.bak").mkdir()
    newer = tmp_path / "recovery" / "step-9"
    newer.mkdir()
    digests = {}
    for name in ("state.json", "weights.safetensors", "optimizer.safetensors"):
        (newer / name).write_bytes(trap)
        digests[name] = hashlib.sha256(trap).hexdigest()
    (newer / "manifest.json").write_text(json.dumps(digests))
    found, skipped = store.newest()
    assert (found.step, len(skipped)) == (1, 1)
    assert not (tmp_path / "opened").exists()


def test_the_steps_of_the_states_that_a_restart_may_go_on_from_are_known(store):
    assert store.steps() == frozenset()
    for step in (9, 10, 11):
        store.save(state(step))
        assert step in store.steps(), "also while it is being written"
    store.wait()
    assert store.steps() == {10, 11}


def test_whenever_it_dies_the_newest_state_that_was_told_is_whole_in_the_store(buckets, tmp_path):
    """Three states, of which two are kept: it dies at every second request, and another begins on an empty disk."""
    mirror = StoreMirror.of(tmp_path / "first", f"{buckets.new()}/team")

    def opened(number, name, told):
        root = tmp_path / f"{number}-{name}"
        there = dataclasses.replace(mirror, root=root, uri=f"{mirror.uri}/{number}")
        return RecoveryStore(root / "recovery", "plan", told.append, there)

    def live(number, death):
        told = []
        with suppress(Died), death.threatens(), ExitStack() as closing:
            dying = opened(number, "dying", told)
            closing.callback(dying.close)
            save(dying, 1, 2, 3)
        return told

    whole = Death()
    assert live(0, whole) == [1, 2, 3]
    assert len(whole.requests) > 20
    for number in range(1, len(whole.requests) + 1, 2):
        told = live(number, Death(number))
        another = opened(number, "another", [])
        found, skipped = another.newest()
        assert skipped == [], whole.requests[number - 1]
        assert (found.step if found else 0) in (max(told, default=0), max(told, default=0) + 1)
        if number % 4 == 1:
            save(another, 4)
            assert max(another.steps()) == another.newest()[0].step == 4
            assert len(another.steps()) <= 2
        another.close()
