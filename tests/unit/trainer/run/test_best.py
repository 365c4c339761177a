"""The best evaluation and the end of patience, on sequences of values worked out by hand."""

from __future__ import annotations

import math

import pytest

from finetune_api.evaluation import EarlyStopping, Evaluation
from finetune_trainer.run.best import Best, Judge


def judged(values, **early_stopping):
    """The evaluation after which it is enough (0 = never), and the best one, both counted from 1."""
    early = EarlyStopping.model_validate(early_stopping) if early_stopping else None
    judge = Judge.of(Evaluation(n_evals=len(values), early_stopping=early))
    best = Best()
    for number, value in enumerate(values, start=1):
        best = judge.after(best, number, value)
        if judge.is_enough(best):
            return number, best.step
    return 0, best.step


@pytest.mark.parametrize(
    ("values", "end", "best"),
    [
        ([5, 4, 3, 2, 1], 0, 5),
        ([5, 4, 4.5, 4.2, 3], 4, 2),
        ([5, 4, 4.5, 3.9, 4, 3.95, 1], 6, 4),
        ([1, 2, 3, 4], 4, 1),
        ([1, 2, 1.5, 1.4, 1.3], 0, 1),
        ([5, 4, 4, 4], 4, 2),
        ([5, math.nan, 4, math.nan, math.inf], 5, 3),
        ([math.nan, math.nan, math.nan], 3, 0),
    ],
    ids=["falls", "rises", "rises twice", "warm-up best", "after the warm-up it falls", "equal", "nan", "only nan"],
)
def test_two_without_improvement_after_one_of_warm_up_are_enough(values, end, best):
    assert judged(values, patience=2) == (end, best)


@pytest.mark.parametrize(
    ("patience", "warmup", "end"), [(1, 0, 2), (1, 1, 3), (1, 3, 5), (3, 0, 4), (3, 2, 6), (5, 1, 0)]
)
def test_on_values_that_only_rise_it_ends_as_early_as_the_rule_lets_it(patience, warmup, end):
    """The API's rule nEvals >= patience + warmupEvals + 1 is the number of evaluations of the earliest end."""
    assert judged([1, 2, 3, 4, 5, 6], patience=patience, warmupEvals=warmup) == (end, 1)
    assert end in (0, patience + warmup + 1)


def test_a_small_improvement_is_the_best_and_yet_none_for_patience():
    assert judged([5, 4.9, 4.8, 4.7], patience=2, warmupEvals=0, minDelta=0.5) == (3, 3)


def test_small_improvements_add_up():
    assert judged([5, 4.7, 4.4, 4.1, 3.8], patience=2, warmupEvals=0, minDelta=0.5) == (0, 5)


def test_improvement_by_exactly_the_delta_is_none():
    assert judged([5, 4.5, 4.5], patience=2, warmupEvals=0, minDelta=0.5) == (3, 2)


@pytest.mark.parametrize(("early", "best"), [({"metric": "rewardAccuracy"}, 2), ({"mode": "Max"}, 2), ({}, 1)])
def test_the_direction_is_the_jobs(early, best):
    assert judged([0.5, 0.8, 0.7], patience=3, **early)[1] == best


def test_without_early_stopping_the_lowest_value_is_best_and_nothing_ends():
    assert judged([3, 1, 2, 9, 9, 9, 9]) == (0, 2)


def test_a_first_value_that_is_worse_than_the_baseline_is_still_the_best_of_all():
    assert judged([9]) == (0, 1)
