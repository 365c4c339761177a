"""Early stopping: which metrics can be watched under which objective, and which of their values are better."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from finetune_api.evaluation import EarlyStopping, EvaluationMetric, Mode, measured
from finetune_api.job import job_from
from finetune_api.method import TrainingMethod
from finetune_api.metrics import METRICS
from judges import pydantic_verdict
from manifests import job

OBJECTIVES = {
    "sft": {"type": "SFT"},
    "dpo": {"type": "DPO"},
    "rpo": {"type": "DPO", "dpo": {"rpoAlpha": 1}},
    "simpo": {"type": "DPO", "dpo": {"beta": 2, "simpoGamma": 1}},
    "reference-free": {"type": "DPO", "dpo": {"referenceFree": True}},
    "simpo-rpo": {"type": "DPO", "dpo": {"beta": 2, "simpoGamma": 1, "rpoAlpha": 0.5}},
    "zeroes": {"type": "DPO", "dpo": {"rpoAlpha": 0, "simpoGamma": 0, "referenceFree": False}},
}


def evaluated(method, **early_stopping):
    evaluation = {"nEvals": 4, "earlyStopping": early_stopping}
    return job(trainingMethod=method, validationFile="pvc://data/eval.jsonl", evaluation=evaluation)


@pytest.mark.parametrize("method", OBJECTIVES.values(), ids=OBJECTIVES)
def test_a_job_may_watch_exactly_what_its_method_measures(method) -> None:
    refusals = {m: pydantic_verdict(evaluated(method, metric=m.value)).refusals for m in EvaluationMetric}
    assert {m for m, found in refusals.items() if not found} == measured(TrainingMethod.model_validate(method))
    assert all(one.startswith("earlyStopping.metric") for found in refusals.values() for one in found)


def test_what_can_be_watched_is_in_the_metric_table() -> None:
    assert {metric.value for metric in EvaluationMetric} <= {metric.status for metric in METRICS}


def test_an_empty_block_is_early_stopping_with_the_defaults() -> None:
    early = job_from(evaluated({"type": "DPO"})).spec.evaluation.early_stopping
    assert early == EarlyStopping(metric=EvaluationMetric.LOSS, patience=2, min_delta=0.0, warmup_evals=1)
    assert not early.higher_is_better


@pytest.mark.parametrize(
    ("metric", "mode", "higher"),
    [
        ("loss", None, False),
        ("rewardAccuracy", None, True),
        ("rewardMargin", None, True),
        ("klChosen", None, False),
        ("rewardAccuracy", Mode.MIN, False),
        ("kl", Mode.MAX, True),
    ],
)
def test_the_direction_is_the_metrics_own_unless_given(metric, mode, higher) -> None:
    assert EarlyStopping(metric=EvaluationMetric(metric), mode=mode).higher_is_better is higher


@pytest.mark.parametrize(("evals", "accepted"), [(6, False), (7, True)])
def test_there_must_be_enough_evaluations_for_it_to_act(evals, accepted) -> None:
    manifest = evaluated({"type": "DPO"}, patience=4, warmupEvals=2)
    manifest["spec"]["evaluation"]["nEvals"] = evals
    if accepted:
        assert job_from(manifest).spec.evaluation.n_evals == evals
    else:
        with pytest.raises(ValidationError, match=r"Early stopping needs nEvals >= patience \+ warmupEvals \+ 1"):
            job_from(manifest)
