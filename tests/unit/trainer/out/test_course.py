"""metrics.jsonl as curves, and curves in few points that keep their peaks."""

from __future__ import annotations

import json

import numpy as np
import pytest

from finetune_trainer.out.course import Curve, read_course


def curve(values):
    return Curve(np.arange(1, len(values) + 1, dtype=float), np.array(values, dtype=float))


def test_a_value_that_a_line_lacks_is_no_point_of_its_curve(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [{"step": 1, "train/loss": 0.5}, {"step": 2, "train/grad_norm": 3.0}, {"step": 3, "train/loss": 0.25}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    course = read_course(path)
    assert course["train/loss"].steps.tolist() == [1, 3]
    assert course["train/loss"].values.tolist() == [0.5, 0.25]
    assert course["train/grad_norm"].steps.tolist() == [2]


def test_a_line_that_a_kill_has_cut_off_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "train/loss": 0.5}\n{"step": 2, "tra')
    assert read_course(path)["train/loss"].steps.tolist() == [1]


def test_no_file_is_a_run_without_steps(tmp_path):
    assert read_course(tmp_path / "metrics.jsonl") == {}


def test_thinned_no_peak_is_lost():
    values = np.sin(np.arange(10_000) / 300)
    values[[77, 5_001]] = 9.0, -9.0
    few = curve(values).thinned(400)
    assert len(few) <= 400
    assert {9.0, -9.0} <= set(few.values.tolist())
    assert (few.steps[0], few.steps[-1]) == (1, 10_000)
    assert (np.diff(few.steps) > 0).all()


@pytest.mark.parametrize("count", [1, 2, 5, 400])
def test_few_points_stay_as_they_are(count):
    whole = curve(range(count))
    assert whole.thinned(400) is whole


def test_smoothed_each_value_is_the_mean_of_the_newest():
    whole = curve(np.arange(100))
    assert whole.window == 4
    assert whole.smoothed().values[[0, 1, 2, 3, 4, 99]].tolist() == [0, 0.5, 1, 1.5, 2.5, 97.5]


def test_a_short_curve_is_not_smoothed():
    assert curve(range(99)).window == 1


def test_between_two_steps_the_first_is_left_out():
    assert curve([1, 2, 3, 4]).between(1, 3).tolist() == [2, 3]
