"""Where evaluations and checkpoints lie."""

from __future__ import annotations

import pytest

from finetune_api.schedule import spaced


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
