"""Which curves each method has, and what they do not show by themselves."""

from __future__ import annotations

import json

import pytest

from finetune_api.method import TrainingMethod
from finetune_trainer.out.charts import Frame
from finetune_trainer.out.course import read_course
from finetune_trainer.out.figures import figures, meaningful
from reports import write_metrics

DPO = {"type": "DPO"}
FRAME = Frame(200, best=100)


def made(path, method=DPO, frame=FRAME):
    chosen = TrainingMethod.model_validate(method)
    return {f.chart.title: f for f in figures(meaningful(read_course(path), chosen), chosen, frame)}


def test_dpo_has_loss_accuracy_margin_both_sides_and_the_distance(tmp_path):
    assert list(made(write_metrics(tmp_path, 200, 50))) == [
        "Loss",
        "Reward accuracy",
        "Reward margin",
        "Change of log-probabilities",
        "Log-probabilities",
        "Distance from the start",
        "Learning rate",
        "Gradient norm",
    ]


def test_sft_has_its_loss(tmp_path):
    path = write_metrics(tmp_path, 200, 50, pairs=False)
    assert list(made(path, {"type": "SFT"})) == ["Loss", "Learning rate", "Gradient norm"]


def test_training_and_evaluation_stand_together_and_are_named_where_they_end(tmp_path):
    found = made(write_metrics(tmp_path, 200, 50))
    assert {label.text.split()[0] for label in found["Loss"].ends} == {"train", "eval"}
    looks = [(label.text.split()[0], label.look) for label in found["Log-probabilities"].ends]
    assert sorted(looks) == [
        ("eval", "eval"),
        ("eval", "eval worse"),
        ("train", "train"),
        ("train", "train worse"),
    ]
    assert "train non-preferred goes from" in found["Log-probabilities"].drawing
    assert found["Loss"].best.at == 50
    assert found["Gradient norm"].best is None, "there are no evaluations in it"


def test_the_change_of_log_probabilities_is_the_distance_with_the_other_sign(tmp_path):
    ends = made(write_metrics(tmp_path, 50, 50))["Change of log-probabilities"].ends
    assert [label.text for label in ends if label.look.startswith("eval")] == ["eval −5.00", "eval −25.0"]


@pytest.mark.parametrize(("method", "first"), [(DPO, 50), ({"type": "DPO", "dpo": {"simpoGamma": 1}}, 0)])
def test_accuracy_means_something_before_the_first_step_only_without_a_reference(tmp_path, method, first):
    (curve,) = [
        line.curve
        for line in made(write_metrics(tmp_path, 200, 50), method)["Reward accuracy"].chart.lines
        if line.name == "eval"
    ]
    assert curve.steps[0] == first


def test_a_peak_beyond_the_scale_is_told(tmp_path):
    path = write_metrics(tmp_path, 200, 50)
    lines = path.read_text().splitlines()
    lines.append(json.dumps({"step": 201, "train/loss": 77.0}))
    path.write_text("\n".join(lines))
    assert made(path)["Loss"].notes == [
        "Faint: each step; strong: mean of the newest 8 steps.",
        "1 value beyond the scale, as far as 77.0.",
    ]
