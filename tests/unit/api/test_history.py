"""Curves of few points stay even, whatever is joined or thinned again."""

from __future__ import annotations

from itertools import pairwise

import pytest
from pydantic import ValidationError

from finetune_api.history import CURVES, MAX_POINTS, MAX_SERIES, History, Series, joined, thinned


def curve(*steps: int) -> History:
    return History(series=(Series(name="train/loss", points=tuple((step, 1.0 / (step + 1)) for step in steps)),))


def steps_of(history: History | None) -> list[int]:
    assert history is not None
    return [step for step, _ in history.series[0].points]


def test_few_points_stay_as_they_are_and_the_last_word_about_a_step_holds():
    assert thinned([(2, 0.5), (1, 1.0), (2, 0.25)]) == ((1, 1.0), (2, 0.25))
    assert thinned([]) == ()


@pytest.mark.parametrize("count", [51, 52, 99, 100, 101, 1000, 12345])
def test_many_points_are_thinned_evenly_and_the_newest_stays(count):
    kept = thinned((step, 0.0) for step in range(1, count + 1))
    assert MAX_POINTS / 2 <= len(kept) <= MAX_POINTS
    assert kept[-1][0] == count
    gaps = {b - a for (a, _), (b, _) in pairwise(kept[:-1])}
    assert len(gaps) == 1
    assert thinned(kept) == kept


def test_a_curve_that_grows_and_is_joined_again_and_again_stays_even():
    """A second pod goes on at step 1001; its curve is joined with what is stored a hundred times."""
    stored = History(series=(Series(name="train/loss", points=thinned((s, 0.0) for s in range(1, 1001))),))
    for newest in range(1010, 2001, 10):
        told = History(series=(Series(name="train/loss", points=thinned((s, 1.0) for s in range(1001, newest + 1))),))
        stored = joined(stored, told) or stored
    points = stored.series[0].points
    assert 12 <= len([value for _, value in points if value == 0.0]) <= 35, "half of the steps were the first pod's"
    assert max(b - a for (a, _), (b, _) in pairwise(points)) <= 64, "a range of 2000 steps in at most 50 points"


def test_steps_that_were_trained_again_replace_the_old_ones():
    assert steps_of(joined(curve(1, 2, 3, 4), curve(3, 4, 5))) == [1, 2, 3, 4, 5]
    assert steps_of(joined(curve(1, 5, 9), curve(4))) == [1, 4]
    assert joined(curve(1), None) == joined(None, curve(1)) == curve(1)
    assert joined(None, None) is None
    assert steps_of(joined(curve(1, 2), curve())) == [1, 2]


def test_never_more_series_than_the_status_takes():
    before = History(series=tuple(Series(name=f"old/{n}", points=((1, 1.0),)) for n in range(MAX_SERIES)))
    both = joined(before, History(series=tuple(Series(name=name, points=((2, 2.0),)) for name in CURVES)))
    assert both is not None
    assert tuple(series.name for series in both.series) == CURVES


@pytest.mark.parametrize(
    "point", [[1], [1, 2, 3], [-1, 0.5], [0.5, 0.5], [2**60, 0.5], ["1", 0.5], [1, "x"], [1, 1e999]]
)
def test_a_point_is_a_step_and_a_finite_value(point):
    with pytest.raises(ValidationError):
        Series.model_validate({"name": "train/loss", "points": [point]})


def test_a_history_reads_back_as_it_was_written():
    written = curve(1, 20)
    assert History.model_validate(written.to_json()) == written
    assert Series.model_validate({"name": "x", "points": [[3, 1]]}).points == ((3, 1.0),)
