"""Warnings on synthetic traces: one trace per warning, and traces on which everything must stay silent."""

from __future__ import annotations

import json
import math
import random
from dataclasses import asdict

import pytest
from pydantic import TypeAdapter

from finetune_trainer.run.health import Health, few_steps, observe

SEED = 11


def trace(total, chosen, margin, accuracy, pairs=32, noise=1.0, seed=SEED):
    """A run's metrics; `chosen`, `margin` and `accuracy` are functions of the share of the run that is done."""
    numbers = random.Random(seed)
    for step in range(1, total + 1):
        done = step / total
        yield (
            step,
            pairs,
            {
                "loss": 0.6,
                "grad_norm": 1.0,
                "logps/chosen": chosen(done) + noise * numbers.gauss(0, 5),
                "rewards/margins": margin(done) + noise * numbers.gauss(0, 0.3),
                "rewards/accuracies": min(1.0, accuracy(done)),
            },
        )


def findings(total, steps):
    health, found = Health(), []
    for step, pairs, values in steps:
        health, new = observe(health, step, total, pairs, values)
        found += [(str(finding.code), step, finding.message) for finding in new]
    return found


def codes(total, steps):
    return [code for code, _, _ in findings(total, steps)]


def steady(done):
    return -100.0


def learning(done):
    return 2 * done


def usual(done):
    return 0.5 + 0.4 * done


def flat(value):
    return lambda done: value


def test_falling_preferred_answers_are_told_in_their_second_window():
    fall = trace(200, lambda done: -100 - 60 * done, learning, usual)
    ((code, step, message),) = findings(200, fall)
    assert (code, step) == ("ChosenLogpsFalling", 80)
    assert "(steps 1-20)" in message
    assert "(steps 61-80)" in message
    assert "dpo.beta" in message


@pytest.mark.parametrize(
    ("start", "fall", "warned"),
    [(-100, 8, False), (-100, 14, True), (-600, 17, False), (-600, 26, True), (-40, 6, True)],
)
def test_falling_is_ten_percent_or_twenty_nats_whichever_comes_first(start, fall, warned):
    steps = trace(200, lambda done: start - fall * (done > 0.25), learning, usual, noise=0.3)
    assert codes(200, steps) == ["ChosenLogpsFalling"] * warned


def test_preferred_answers_that_fall_without_a_growing_margin_are_another_matter():
    steps = trace(200, lambda done: -100 - 60 * done, lambda done: 5 - 3 * done, usual)
    assert codes(200, steps) == []


def test_a_fall_that_may_be_chance_is_none():
    """Step means that spread over hundreds of nats: a window's mean may be 10 % off."""
    for seed in range(20):
        assert "ChosenLogpsFalling" not in codes(400, trace(400, steady, learning, usual, noise=12, seed=seed))


def test_right_from_the_start_is_too_easy():
    ((code, step, message),) = findings(400, trace(400, steady, learning, lambda done: 0.4 if done < 0.01 else 1.0))
    assert (code, step) == ("TooEasy", 40)
    assert "100.0% of the pairs were already right in steps 21-40 of 400" in message


@pytest.mark.parametrize(
    "accuracy", [flat(0.99), lambda done: 0.5 + 2 * done, lambda done: 1.0 if done > 0.15 else 0.8]
)
def test_right_later_or_nearly_is_not_too_easy(accuracy):
    assert codes(400, trace(400, steady, learning, accuracy)) == []


def test_a_margin_of_noise_is_no_learning_told_once_after_a_third():
    ((code, step, message),) = findings(200, trace(200, steady, flat(0.0), flat(0.5)))
    assert (code, step) == ("NoLearning", 80)
    assert "steps 61-80 of 200" in message


def test_a_margin_of_exactly_nothing_is_no_learning():
    assert codes(100, trace(100, steady, flat(0.0), flat(0.0), noise=0)) == ["NoLearning"]


def test_a_margin_that_came_late_but_came_is_silent_if_it_is_there_after_a_third():
    assert codes(200, trace(200, steady, lambda done: max(0.0, 4 * (done - 0.3)), usual)) == []


@pytest.mark.parametrize("seed", range(20))
def test_a_healthy_noisy_run_is_silent(seed):
    assert codes(300, trace(300, lambda done: -100 - 6 * done, learning, usual, seed=seed)) == []


def test_windows_hold_at_least_256_pairs():
    """Of one pair a step: 256 steps to a window, so a run of 250 has none."""
    steps = list(trace(250, lambda done: -100 - 80 * done, flat(0.0), flat(1.0), pairs=1))
    assert codes(250, steps) == []
    assert codes(300, list(trace(300, steady, flat(0.0), flat(0.5), pairs=1))) == ["NoLearning"]


def test_a_run_shorter_than_a_window_is_silent():
    assert codes(19, trace(19, lambda done: -100 - 80 * done, flat(0.0), flat(1.0))) == []


def test_supervised_fine_tuning_has_nothing_to_say_here():
    steps = ((step, 32, {"loss": 2.0, "grad_norm": 1.0}) for step in range(1, 201))
    assert codes(200, steps) == []


def test_skipped_steps_count_for_nothing():
    bad = (0, 32, {"grad_norm": math.nan, "logps/chosen": -9e9, "rewards/margins": math.nan, "rewards/accuracies": 0.0})
    steps = [entry for step in trace(200, steady, learning, usual) for entry in (step, bad)]
    assert codes(200, steps) == []


def test_going_on_from_a_saved_state_says_the_same_at_the_same_steps():
    steps = list(trace(200, lambda done: -100 - 60 * done, flat(0.0), flat(1.0)))
    whole = findings(200, steps)
    assert len(whole) > 1
    for cut in (1, 19, 20, 21, 60, 79, 80, 81):
        health, found = Health(), []
        for step, pairs, values in steps:
            if step == cut:
                saved = json.dumps(asdict(health))
                restored = TypeAdapter(Health).validate_python(json.loads(saved))
                assert restored == health
                health = restored
            health, new = observe(health, step, 200, pairs, values)
            found += [(str(finding.code), step, finding.message) for finding in new]
        assert found == whole


def test_gradient_norms_of_the_newest_steps_are_kept():
    health = Health()
    for step in range(1, 31):
        norm = math.inf if step == 30 else float(step)
        health, _ = observe(health, step, 100, 4, {"loss": 1.0, "grad_norm": norm})
    assert health.norms == tuple(float(step) for step in range(10, 30))


@pytest.mark.parametrize(("total", "warned"), [(49, True), (50, False), (3, True)])
def test_fewer_than_fifty_steps_are_few(total, warned):
    finding = few_steps(total, 8, 100)
    assert (finding is not None) is warned
    if finding:
        assert finding.message.startswith(f"the whole run is {total} optimiser steps (100 rows, batchSize 8)")
