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
from threading import Barrier, BrokenBarrierError

import pytest
import torch

from buckets import Death, Died
from finetune_trainer.mirror import VOLUME, StoreMirror
from finetune_trainer.out import checkpoint
from finetune_trainer.out.checkpoint import RecoveryState, RecoveryStore, Writers
from finetune_trainer.shares import Share


def state(step):
    tensors = {
        "weights": {"a": Share(torch.full((3,), float(step)))},
        "optimizer": {"step:a": Share(torch.tensor(float(step)))},
    }
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
    assert torch.equal(found.tensors("weights").whole("a"), torch.full((3,), 2.0))
    assert found.tensors("optimizer").whole("step:a").shape == ()
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
    given.tensors["weights"]["a"].tensor.fill_(9.0)
    store.wait()
    assert torch.equal(store.newest()[0].tensors("weights").whole("a"), torch.full((3,), 1.0))


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

    monkeypatch.setattr(checkpoint, "save_shares", full)
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


class Exchange:
    """What the writers tell each other; a writer that does not come ends the wait of the others."""

    def __init__(self, size):
        self.barrier, self.pending, self.told = Barrier(size, self.collect), {}, {}

    def __call__(self, given):
        self.pending.update(given)
        self.barrier.wait(10)
        return dict(self.told)

    def collect(self):
        self.told, self.pending = self.pending, {}


def writers(root, exchange, mirror=VOLUME):
    """Those of three processes that write a state together, each on a disk of its own where `mirror` is a store's."""
    made = []
    for rank in range(3):
        own = root if mirror is VOLUME else root / str(rank)
        there = mirror if mirror is VOLUME else dataclasses.replace(mirror, root=own)
        store = RecoveryStore(own / "recovery", "plan", lambda _step: None, there, Writers(rank, 3, exchange))
        made.append(store)
    return made


@pytest.fixture
def exchange():
    return Exchange(3)


@pytest.fixture
def stores(tmp_path, exchange):
    made = writers(tmp_path, exchange)
    yield made
    exchange.barrier.abort()
    for store in made:
        store.close()


def shares(step, rank):
    """Of a tensor of 5 rows each has up to two; what is no tensor's share the first one writes."""
    rows = torch.arange(5.0)[2 * rank : 2 * rank + 2] + step
    count = {"step:a": Share(torch.tensor(float(step)))} if rank == 0 else {}
    return RecoveryState(step, {"weights": {"a": Share(rows, 2 * rank)}, "optimizer": count}, {"of": rank})


def save_together(stores, step):
    for rank, store in enumerate(stores):
        store.save(shares(step, rank))
    for store in stores:
        store.wait()


def test_a_state_of_several_writers_is_whole_when_all_have_written(stores, tmp_path):
    for step in (1, 2, 2, 3):
        save_together(stores, step)
    folder = tmp_path / "recovery" / "step-3"
    kinds = [f"{kind}-0000{rank}-of-00003.safetensors" for kind in ("optimizer", "weights") for rank in (1, 2, 3)]
    assert sorted(file.name for file in folder.iterdir()) == ["manifest.json", *kinds[:3], "state.json", *kinds[3:]]
    assert {other.name for other in folder.parent.iterdir()} == {"step-2", "step-3"}
    found, skipped = stores[0].newest()
    assert (found.step, found.facts, skipped) == (3, {"of": 0}, [])
    saved = found.tensors("weights")
    assert saved.whole("a").tolist() == [3, 4, 5, 6, 7]
    assert [saved.rows("a", begin, 2).tolist() for begin in (0, 1, 3, 4, 5)] == [[3, 4], [4, 5], [6, 7], [7], []]
    (folder / kinds[4]).write_bytes((folder / kinds[3]).read_bytes())
    assert stores[0].newest()[0].step == 2, "a share that is another's is damage"


def test_a_state_that_one_of_the_writers_did_not_write_is_none(stores, exchange, tmp_path):
    save_together(stores, 1)
    for rank, store in enumerate(stores[:2]):
        store.save(shares(2, rank))
    exchange.barrier.abort()
    with pytest.raises(BrokenBarrierError):
        stores[0].wait()
    again = RecoveryStore(tmp_path / "recovery", "plan", lambda _step: None)
    assert again.newest()[0].step == 1
    assert {folder.name for folder in (tmp_path / "recovery").iterdir()} == {"step-1"}
    again.close()


def test_writers_on_disks_of_their_own_put_a_state_into_a_store(buckets, exchange, tmp_path):
    """The same step twice, too: the second state takes the place of the first file by file."""
    mirror = StoreMirror.of(tmp_path, f"{buckets.new()}/team")
    made = writers(tmp_path, exchange, mirror)
    for step in (1, 2, 2, 3):
        save_together(made, step)
    another = RecoveryStore(tmp_path / "recovery", "plan", lambda _step: None, mirror)
    found, skipped = another.newest()
    assert (found.step, skipped) == (3, [])
    assert found.tensors("weights").whole("a").tolist() == [3, 4, 5, 6, 7]
    assert another.steps() == {2, 3}
    for store in (*made, another):
        store.close()


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
