"""Collation in the background: the same micro-batches in the same order, one ahead, and a thread that always ends."""

from __future__ import annotations

import threading
from contextlib import closing

import pytest

from finetune_trainer.step.collate import collated

MICRO_BATCHES = ((3, 1), (4,), (0, 2, 5))


def threads():
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("collate")]


def test_each_comes_with_what_is_made_of_it_in_order():
    assert list(collated(MICRO_BATCHES, sum)) == [((3, 1), 4), ((4,), 4), ((0, 2, 5), 7)]
    assert list(collated((), sum)) == []
    assert threads() == []


def test_the_next_is_made_while_this_one_is_used():
    made = {rows: threading.Event() for rows in MICRO_BATCHES}

    def make(rows):
        assert threading.current_thread().name.startswith("collate")
        made[rows].set()

    with closing(collated(MICRO_BATCHES, make)) as batches:
        next(batches)
        assert made[MICRO_BATCHES[1]].wait(10)
        assert not made[MICRO_BATCHES[2]].wait(0.05), "one ahead and no more"


def test_what_fails_is_raised_in_its_place_and_the_thread_ends():
    def make(rows):
        if rows == (0, 2, 5):
            raise KeyError("row 5")
        return rows

    seen = []
    with pytest.raises(KeyError, match="row 5"), closing(collated(MICRO_BATCHES, make)) as batches:
        seen.extend(rows for rows, _ in batches)
    assert seen == list(MICRO_BATCHES[:2])
    assert threads() == []


def test_stopping_early_ends_the_thread():
    with closing(collated(MICRO_BATCHES, sum)) as batches:
        next(batches)
        assert len(threads()) == 1
    assert threads() == []
