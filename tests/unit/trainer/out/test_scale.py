"""Scales: round numbers, room for all values, and a lone peak that does not flatten the rest."""

from __future__ import annotations

import numpy as np
import pytest

from finetune_trainer.out.scale import scale_of, ticks

NONE = np.empty(0)


@pytest.mark.parametrize(
    ("low", "high", "found"),
    [
        (0, 1, [0, 0.5, 1]),
        (0.31, 0.69, [0.4, 0.5, 0.6]),
        (-120, -80, [-120, -110, -100, -90, -80]),
        (0, 2e-5, [0, 5e-6, 1e-5, 1.5e-5, 2e-5]),
        (3, 3, [3]),
    ],
)
def test_ticks_are_round(low, high, found):
    assert ticks(low, high, 4) == pytest.approx(found)


def test_steps_are_whole():
    assert ticks(0, 2, 5, whole=True) == [0, 1, 2]


def test_every_value_is_on_it_with_room_around():
    scale = scale_of(np.array([1.0, 2.0, 3.0]), np.array([4.0]))
    assert scale.low < 1 < 4 < scale.high
    assert scale.down(scale.high) == 0
    assert scale.down(scale.low) == 1


def test_a_lone_peak_is_cut_off():
    values = np.concatenate([np.linspace(0.3, 0.7, 200), [50.0]])
    scale = scale_of(values, NONE)
    assert scale.high < 1
    assert not scale.holds(50.0)
    assert scale.down(50.0) == 0


def test_beside_a_lone_peak_all_others_are_shown():
    values = np.concatenate([np.linspace(0.3, 0.7, 200), [0.2, 0.9, 50.0]])
    scale = scale_of(values, NONE)
    assert [value for value in values if not scale.holds(value)] == [50.0]


def test_an_evaluation_is_never_cut_off():
    assert scale_of(np.linspace(0.3, 0.7, 200), np.array([50.0])).holds(50.0)


@pytest.mark.parametrize("value", [0.0, -3.0, 1e-9])
def test_one_value_has_a_scale_too(value):
    scale = scale_of(np.array([value]), NONE)
    assert 0.3 < scale.down(value) < 0.7


def test_what_it_is_compared_with_is_shown_when_it_is_near():
    near = scale_of(np.array([0.5, 0.6]), NONE, level=0.69)
    far = scale_of(np.array([5.5, 5.6]), NONE, level=0.69)
    assert (near.holds(0.69), far.holds(0.69)) == (True, False)


def test_a_share_stays_between_its_bounds():
    scale = scale_of(np.array([0.0, 1.0]), NONE, bounds=(0.0, 1.0))
    assert (scale.low, scale.high) == pytest.approx((-0.02, 1.02))
