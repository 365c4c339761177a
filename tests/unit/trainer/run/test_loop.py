"""What is due after a step: evaluations, the best checkpoint, the early end, the metrics that a checkpoint carries."""

from __future__ import annotations

import json

import pytest

from finetune_api.metrics import status_values
from finetune_trainer.failures import RunFailed
from finetune_trainer.run import loop as loop_module
from finetune_trainer.run.evaluate import Evaluated
from runs import prepared, run
from training import metrics_rows


@pytest.fixture
def evaluations(monkeypatch):
    """Replaces what evaluations give: the loss of each, the baseline first."""

    def give(*losses, **others):
        queue = iter(losses)
        monkeypatch.setattr(loop_module, "evaluate", lambda *_: Evaluated({"loss": next(queue), **others}, ()))

    return give


def configured(config, n_evals, n_checkpoints=2, **early):
    evaluation = {"nEvals": n_evals, **({"earlyStopping": early} if early else {})}
    document = config.model_dump(by_alias=True, mode="json")
    document["checkpointing"] = {"nCheckpoints": n_checkpoints, "recoveryPeriodSeconds": 3600}
    return prepared(type(config).model_validate({**document, "evaluation": evaluation}))


def listed(report):
    return [(c.step, c.type.value, c.best, c.metrics["evalLoss"]) for c in report.checkpoints]


def test_the_best_evaluation_is_published_beside_what_was_asked_for(config, evaluations, tmp_path):
    evaluations(0.1, 5, 3, 4, 2.5, 4.5, 4.2)
    report = run(configured(config, 6))
    assert listed(report) == [
        (12, "Intermediate", False, 4),
        (16, "Intermediate", True, 2.5),
        (24, "Final", False, 4.2),
    ]
    folders = {path.name for path in (tmp_path / "out" / "checkpoints").iterdir()}
    assert folders == {"step-12", "step-16", "step-24"}, "8 was the best for a while and is gone"
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert [c["step"] for c in manifest["checkpoints"] if c.get("best")] == [16]
    assert report.early_stop is None


@pytest.mark.parametrize(
    ("losses", "best"),
    [((1, 2, 3, 4), 6), ((2, 1, 3, 4), 12), ((4, 3, 2, 1), 24), ((2, 1, 1, 1), 12)],
    ids=["first", "one that was asked for", "final", "equal ones"],
)
def test_the_best_may_be_any(config, evaluations, losses, best):
    evaluations(0, *losses)
    checkpoints = run(configured(config, 4)).checkpoints
    assert [c.step for c in checkpoints if c.best] == [best]
    assert {c.step for c in checkpoints} == {12, 24, best}


def test_without_evaluations_none_is_best_and_no_checkpoint_carries_metrics(config):
    checkpoints = run(configured(config, 0)).checkpoints
    assert [(c.step, c.best, c.metrics) for c in checkpoints] == [(12, False, {}), (24, False, {})]


def test_training_ends_when_patience_does_and_the_last_step_is_the_final_checkpoint(config, evaluations, tmp_path):
    evaluations(9, 5, 4, 4.5, 4.1, 1, 1, 1, 1)
    report = run(configured(config, 8, patience=2))
    assert listed(report) == [(6, "Intermediate", True, 4), (12, "Final", False, 4.1)]
    stop = report.early_stop
    assert (stop.metric, stop.step, stop.evaluations, stop.best_step, stop.best_value) == ("loss", 12, 2, 6, 4)
    progress = report.progress
    assert (progress.display, progress.step, progress.percentage) == ("12/24", 12, 50)
    assert progress.estimated_remaining_seconds == 0
    assert report.recovery.step == 12
    rows = metrics_rows(tmp_path / "out" / "metrics.jsonl")
    assert max(row["step"] for row in rows) == 12
    adapter = (tmp_path / "out" / "adapter" / "adapter_model.safetensors").read_bytes()
    assert adapter == (tmp_path / "out" / "checkpoints" / "step-12" / "adapter_model.safetensors").read_bytes()


def test_patience_that_ends_with_the_run_is_no_early_stop(config, evaluations):
    evaluations(9, 5, 4, 4.5, 4.1)
    report = run(configured(config, 4, patience=2))
    assert report.early_stop is None
    assert report.progress.display == "24/24"


def test_the_last_evaluation_before_an_early_stop_may_be_the_best(config, evaluations):
    evaluations(9, 5, 4.9, 4.8, 4.7, 4.6)
    report = run(configured(config, 8, n_checkpoints=1, patience=2, minDelta=0.5))
    assert [(c.step, c.best) for c in report.checkpoints] == [(12, True)]
    assert report.early_stop.best_step == report.early_stop.step == 12


def test_another_metric_is_watched_in_its_own_direction(config, evaluations, monkeypatch):
    accuracies = iter([0.9, 0.5, 0.8, 0.7, 0.6, 0.9])
    monkeypatch.setattr(
        loop_module, "evaluate", lambda *_: Evaluated({"loss": 1.0, "rewards/accuracies": next(accuracies)}, ())
    )
    report = run(configured(config, 8, metric="rewardAccuracy", patience=2))
    assert (report.early_stop.metric, report.early_stop.best_step, report.early_stop.best_value) == (
        "rewardAccuracy",
        6,
        0.8,
    )


def test_a_metric_that_the_method_does_not_measure_is_refused_before_the_first_step(config, evaluations, tmp_path):
    evaluations(1.0, **{"kl": 0.1})
    with pytest.raises(RunFailed, match="rewardMargin is not measured by this method, which has loss, kl") as caught:
        run(configured(config, 8, metric="rewardMargin", patience=2))
    assert caught.value.failure.exit_code == 10
    assert (tmp_path / "out" / "metrics.jsonl").read_text() == ""


def test_a_checkpoint_carries_the_newest_evaluation_at_or_before_its_step(config, tmp_path):
    report = run(configured(config, 5, n_checkpoints=4))
    rows = [row for row in metrics_rows(tmp_path / "out" / "metrics.jsonl") if "eval/loss" in row]
    assert [row["step"] for row in rows] == [0, 5, 10, 14, 19, 24]
    for checkpoint in report.checkpoints:
        newest = [row for row in rows if row["step"] <= checkpoint.step][-1]
        names = {name.removeprefix("eval/"): value for name, value in newest.items() if name != "step"}
        carried = {f"eval{name[0].upper()}{name[1:]}": value for name, value in status_values(names).items()}
        assert checkpoint.metrics == carried
    assert [c.metrics["evalLoss"] for c in report.checkpoints if c.best] == [
        min(status_values({"loss": row["eval/loss"]})["loss"] for row in rows[1:])
    ]
