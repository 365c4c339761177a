"""Where evaluations and checkpoints lie."""

from __future__ import annotations

import pytest

from builders import make_checkpoint
from finetune_api.schedule import offered, spaced
from finetune_api.status import CheckpointType


@pytest.mark.parametrize(
    ("count", "total", "steps"),
    [
        (1, 100, {100}),
        (4, 100, {25, 50, 75, 100}),
        (3, 10, {3, 7, 10}),
        (2, 5, {3, 5}),
        (5, 3, {1, 2, 3}),
        (3, 1, {1}),
        (1000, 2, {1, 2}),
    ],
)
def test_points_are_evenly_spaced_end_at_the_end_and_never_begin_before_step_1(count, total, steps):
    assert spaced(count, total) == steps


def checkpoint(step, kind=CheckpointType.INTERMEDIATE, best=False):
    return make_checkpoint(step, kind).model_copy(update={"best": best})


def steps(*checkpoints):
    return [(c.step, c.type) for c in offered(checkpoints, planned={10, 20})]


INTERMEDIATE, FINAL, MERGED = CheckpointType.INTERMEDIATE, CheckpointType.FINAL, CheckpointType.FINAL_MERGED


def test_what_was_asked_for_the_best_and_the_final_ones_are_offered():
    every = (checkpoint(6), checkpoint(8, best=True), checkpoint(10), checkpoint(20, FINAL), checkpoint(20, MERGED))
    assert steps(*every) == [(8, INTERMEDIATE), (10, INTERMEDIATE), (20, FINAL), (20, MERGED)]


def test_the_final_one_of_an_early_stop_lies_anywhere_and_nothing_after_it():
    assert steps(checkpoint(10), checkpoint(17, FINAL), checkpoint(20)) == [(10, INTERMEDIATE), (17, FINAL)]


def test_a_run_that_goes_on_offers_all_that_it_has():
    assert steps(checkpoint(10), checkpoint(20)) == [(10, INTERMEDIATE), (20, INTERMEDIATE)]
