"""How manifests are read: nulls, numbers, names, rules."""

from __future__ import annotations

import math

import pytest
from pydantic import ValidationError

from finetune_api.base import broken_transitions, cel_string, walk
from finetune_api.hyperparameters import Hyperparameters
from finetune_api.job import FineTuneJob, job_from
from finetune_api.method import Lora
from manifests import job


@pytest.mark.parametrize("value", [1.0, 1])
def test_an_integral_float_is_an_integer(value) -> None:
    read = Hyperparameters.model_validate({"nEpochs": value})
    assert read.n_epochs == 1
    assert type(read.n_epochs) is int


@pytest.mark.parametrize("value", [1.5, "1", True, [], {}, math.inf, math.nan])
def test_nothing_else_is_an_integer(value) -> None:
    with pytest.raises(ValidationError):
        Hyperparameters.model_validate({"nEpochs": value})


@pytest.mark.parametrize("value", ["1e-5", True, math.inf, -math.inf, math.nan])
def test_a_number_is_finite_and_no_string(value) -> None:
    with pytest.raises(ValidationError):
        Hyperparameters.model_validate({"learningRate": value})


def test_an_integer_is_a_number() -> None:
    read = Hyperparameters.model_validate({"learningRate": 1})
    assert read.learning_rate == 1.0
    assert type(read.learning_rate) is float


def test_a_null_is_an_absent_field() -> None:
    assert job_from(job(suffix=None, hyperparameters=None, resources={"cpu": None})) == job_from(job(resources={}))


def test_a_manifest_is_read_by_its_json_names_alone() -> None:
    with pytest.raises(ValidationError, match="training_file"):
        job_from(job(training_file="pvc://claim/a"))


def test_an_unknown_field_is_refused() -> None:
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        job_from(job(learningRate=1e-5))


def test_models_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Lora(rank=4).rank = 8  # type: ignore[misc]


def test_to_json_leaves_absent_values_out() -> None:
    assert Lora(rank=4, trainable_modules=("q_proj",)).to_json() == {"rank": 4, "trainableModules": ["q_proj"]}


def test_every_broken_rule_is_told_with_its_path() -> None:
    manifest = job(fromCheckpoint="a", evaluation={"nEvals": 1}, trainingMethod={"dpo": {"beta": 1}})
    with pytest.raises(ValidationError) as refused:
        job_from(manifest)
    assert {(error["loc"], error["msg"]) for error in refused.value.errors()} == {
        (("spec",), "You must specify either a model or a checkpoint to start from, not both"),
        (("spec",), "nEvals needs a validationFile"),
        (("spec", "trainingMethod"), "dpo.beta is only supported for DPO training"),
    }


def test_walk_visits_every_model_with_its_path() -> None:
    paths = [path for path, _ in walk(job_from(job(trainingType={"lora": {"rank": 2}})))]
    assert paths[0] == ()
    assert ("spec", "trainingType", "lora") in paths
    assert ("spec", "hyperparameters", "lrScheduler") in paths


def test_transition_rules_compare_old_and_new() -> None:
    old: FineTuneJob = job_from({**job(), "status": {"startTime": "2026-01-01T00:00:00Z"}})
    assert broken_transitions(old, job_from(job())) == []
    assert broken_transitions(old, job_from(job(cancel=True))) == []
    assert broken_transitions(old, job_from(job(suffix="late"))) == [
        "spec is immutable once the job has started: create a new FineTuneJob"
    ]
    not_started = job_from(job())
    assert broken_transitions(not_started, job_from(job(suffix="early"))) == []


def test_cel_string_escapes() -> None:
    assert cel_string(r"a\.b'c") == r"'a\\.b\'c'"
