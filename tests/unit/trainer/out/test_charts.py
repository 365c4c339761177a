"""Drawings: well-formed, bounded, each line to be told from the others, values under the pointer."""

from __future__ import annotations

from xml.etree import ElementTree

import numpy as np
import pytest

from finetune_trainer.out.charts import Chart, Frame, Line, Look, drawing, end_labels, spread, x_labels
from finetune_trainer.out.course import Curve
from finetune_trainer.out.scale import scale_of


def line(values, look=Look.TRAIN, first=1, name="train"):
    return Line(name, Curve(np.arange(first, first + len(values), dtype=float), np.array(values, dtype=float)), look)


def drawn(*lines, frame=None, **options):
    chart = Chart("Loss", "", lines, **options)
    scale = scale_of(np.concatenate([each.curve.values for each in lines]), np.empty(0), chart.level)
    return ElementTree.fromstring(drawing(chart, scale, frame or Frame(len(lines[0].curve))))


def classes(tree):
    return [path.get("class") for path in tree.iter("path")]


def test_ten_thousand_steps_are_a_few_hundred_points():
    tree = drawn(line(np.sin(np.arange(10_000))))
    assert max(len(path.get("d")) for path in tree.iter("path")) < 5_000
    assert classes(tree)[-2:] == ["train each", "train"], "every step faintly, and above it their mean"


def test_an_evaluation_has_a_dot_for_each_value():
    tree = drawn(line([1, 2, 3], Look.EVAL, first=0, name="eval"))
    (dots,) = [path.get("d") for path in tree.iter("path") if path.get("class") == "eval dot"]
    assert dots.count("h0") == 3


def test_a_lone_value_is_seen():
    assert "train dot" in classes(drawn(line([1.0])))


def test_the_drawing_says_in_words_where_its_lines_go():
    assert drawn(line([0.7, 0.5])).get("aria-label") == "Loss by step: train goes from 0.700 to 0.500"


def test_values_under_the_pointer_are_titles():
    titles = [title.text for title in drawn(line([0.7, 0.5]), line([0.25], Look.EVAL, 2, "eval")).iter("title")]
    assert titles == ["step 1\ntrain 0.7000", "step 2\ntrain 0.5000\neval 0.2500"]
    titles = [title.text for title in drawn(line(np.arange(96.0))).iter("title")]
    assert titles[1] == "steps 3 to 4\ntrain 2.000 to 3.000"
    assert len(titles) == 48


def test_steps_without_finite_numbers_and_the_best_evaluation_are_marked():
    marks = classes(drawn(line([1, 2]), frame=Frame(100, best=50, missing=(3, 4, 99))))
    assert (marks.count("gap"), marks.count("best")) == (3, 1)
    many = classes(drawn(line([1, 2]), frame=Frame(10_000, missing=tuple(range(1, 9_000)))))
    assert 0 < many.count("gap") <= 60


def test_labels_that_would_meet_move_apart():
    assert spread([0.5, 0.51, 0.9], 0.1) == pytest.approx([0.5, 0.6, 0.9])
    assert spread([0.98, 0.99, 1.0], 0.1) == pytest.approx([0.8, 0.9, 1.0])
    chart = Chart("Loss", "", (line([1, 0.50]), line([1, 0.501], Look.EVAL, name="eval")))
    above, below = end_labels(chart, scale_of(np.array([0.5, 1.0]), np.empty(0)))
    assert (above.text, below.text) == ("eval 0.501", "train 0.500")
    assert below.at - above.at > 10


def test_steps_are_named_from_the_first_to_the_last():
    assert [label.text for label in x_labels(Frame(184))] == ["0", "50", "100", "150"]
    assert [label.text for label in x_labels(Frame(1))] == ["0", "1"]
