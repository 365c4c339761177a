"""Whole runs under each objective: what they score, measure and warn of."""

from __future__ import annotations

import json
import math
from threading import Event

import pytest

from finetune_api.trainer import Stage
from finetune_trainer.layout import Layout
from finetune_trainer.out.progress import Reporter
from finetune_trainer.prepare import prepare
from finetune_trainer.run.train import train
from training import metrics_rows, preference_rows, shared_preferences, trainer_config, write_jsonl

SIMPO = {"beta": 2, "simpoGamma": 1}
OPTIONS = [
    {"beta": 0.1},
    {"beta": 5, "normalizeLogratiosByLength": True},
    {"beta": 0.1, "referenceFree": True},
    {"beta": 0.1, "rpoAlpha": 0.5},
    {"beta": 0.1, "labelSmoothing": 0.1},
    SIMPO,
    {**SIMPO, "rpoAlpha": 1},
]
KINDS = {
    "LoRA": {"hyperparameters": {"nEpochs": 4, "learningRate": 1e-2, "seed": 7}},
    "Full": {"hyperparameters": {"nEpochs": 4, "learningRate": 3e-3, "seed": 7}, "trainingKind": "Full", "lora": None},
}
OF_SMALL_RUNS = {"FewSteps"}
"""What applies to any run as short as these."""


def reasons(report):
    return {warning.reason for warning in report.warnings}


def run(model, folder, method, rows, **changes):
    """Prepare and train; the report and the lines of metrics.jsonl."""
    write_jsonl(folder / "train.jsonl", rows)
    config = trainer_config(model, folder, trainingMethod=method, **changes)
    prepare(config, lambda **_fields: None)
    reporter = Reporter(config.job, Stage.TRAIN, "pod-1")
    scored = Layout.of(config).reference
    state = []
    train(config, _Watching(reporter, lambda: state.append(scored.exists())), Event())
    return reporter.report, metrics_rows(Layout.of(config).metrics), any(state)


def short_preferences():
    """The shortest real preferences there are: enough of them to learn from, few tokens to wait for."""
    return sorted(shared_preferences(), key=lambda row: len(json.dumps(row)))[:6]


class _Watching:
    """A reporter that looks around whenever it is told something."""

    def __init__(self, reporter, look):
        self._reporter, self._look = reporter, look

    def __getattr__(self, name):
        self._look()
        return getattr(self._reporter, name)


@pytest.mark.parametrize("options", OPTIONS, ids=json.dumps)
@pytest.mark.parametrize("kind", KINDS)
def test_an_objective_learns_real_preferences_without_a_warning(tiny_model, tmp_path, options, kind):
    rows = short_preferences()
    report, lines, referenced = run(tiny_model, tmp_path, {"type": "DPO", "dpo": options}, rows, **KINDS[kind])
    losses = [line["train/loss"] for line in lines if "train/loss" in line]
    assert losses[-1] < losses[0]
    assert reasons(report) <= OF_SMALL_RUNS
    free = "referenceFree" in options or "simpoGamma" in options
    assert referenced != free
    assert ("train/kl" in lines[0]) != free
    if not free:
        assert losses[0] - options.get("rpoAlpha", 0) * lines[0].get("train/nll", 0) == pytest.approx(
            math.log(2), abs=1e-6
        ), "policy and reference agree at step 1"


@pytest.mark.parametrize(
    ("options", "reason"),
    [({"normalizeLogratiosByLength": True}, "BetaLow"), ({"simpoGamma": 1, "rpoAlpha": 1}, "GammaDominates")],
)
def test_a_beta_that_does_not_fit_the_objective_is_told(tiny_model, tmp_path, options, reason):
    report, _, _ = run(tiny_model, tmp_path, {"type": "DPO", "dpo": options}, preference_rows(4))
    assert reasons(report) - OF_SMALL_RUNS == {reason}
    (told,) = (warning for warning in report.warnings if warning.reason == reason)
    assert "set beta to 2 to 10" in told.message


@pytest.mark.parametrize("kind", KINDS)
def test_sft_learns_the_preferred_answers_of_the_same_file(tiny_model, tmp_path, kind):
    rows = short_preferences()
    report, lines, referenced = run(tiny_model, tmp_path, {"type": "SFT"}, rows, **KINDS[kind])
    losses = [line["train/loss"] for line in lines if "train/loss" in line]
    assert losses[-1] < losses[0]
    assert reasons(report) <= OF_SMALL_RUNS
    assert not referenced
    assert not any("rewards" in name or "kl" in name for name in lines[0])
