"""Tracking in a manifest, in the trainer's configuration, and as sentences."""

from __future__ import annotations

import pytest

from builders import make_job
from finetune_api.resolve import Place, configure, resolve
from finetune_api.tracking import (
    PROBLEMS,
    Tracker,
    TrackerProblem,
    Tracking,
    failed_sentence,
    host_of,
    recovered_sentence,
)
from finetune_api.trainer import JobIdentity, Start

MLFLOW = {"trackingUri": "https://mlflow.example.com:8080/base"}


def test_absent_values_are_those_of_the_servers():
    tracking = make_job(tracking={"wandb": {}, "mlflow": MLFLOW}).spec.tracking
    assert tracking.wandb is not None
    assert tracking.mlflow is not None
    assert (tracking.wandb.project, tracking.wandb.base_url) == ("together", "https://api.wandb.ai")
    assert tracking.mlflow.experiment == "Default"
    assert tracking.chosen == (Tracker.WANDB, Tracker.MLFLOW)
    assert tracking.place(Tracker.MLFLOW) == MLFLOW["trackingUri"]


@pytest.mark.parametrize("given", [None, {}, {"tensorboard": False}, {"wandb": None}])
def test_a_job_without_trackers_is_one_for_a_trainer_that_knows_none(given):
    job = make_job(tracking=given)
    start = Start(model="hf://org/tiny")
    place = Place(JobIdentity(namespace="a", name="b", uid="c"), start, "pvc://claim", "out", 0, False, {})
    assert "tracking" not in configure(job.spec, resolve(job.spec, None), place).to_json()


@pytest.mark.parametrize(
    ("address", "host"),
    [("https://api.wandb.ai", "api.wandb.ai"), (MLFLOW["trackingUri"], "mlflow.example.com"), ("http://a:1/b:2", "a")],
)
def test_a_host_has_no_port(address, host):
    assert host_of(address) == host


@pytest.mark.parametrize("problem", list(TrackerProblem))
@pytest.mark.parametrize("tracker", list(Tracker))
def test_every_problem_is_a_sentence_of_every_tracker(tracker, problem):
    tracking = Tracking.model_validate({"wandb": {}, "tensorboard": True, "mlflow": MLFLOW})
    said = failed_sentence(tracking, tracker, problem, "HTTP 500")
    assert said.startswith(f"{tracker} ")
    assert said.endswith(". Training goes on; metrics.jsonl holds every value")
    assert "{" not in said
    assert ("{detail}" not in PROBLEMS[problem]) or "HTTP 500" in said


def test_a_sentence_names_the_place_and_the_field():
    tracking = Tracking.model_validate({"mlflow": MLFLOW})
    said = failed_sentence(tracking, Tracker.MLFLOW, TrackerProblem.REFUSED, "HTTP 401")
    assert "https://mlflow.example.com:8080/base (HTTP 401)" in said
    assert "the Secret that tracking.mlflow.tokenSecretRef names" in said
    assert recovered_sentence(Tracker.MLFLOW) == "MLflow had failed, is back, and has been sent every value"
