"""What the trainer tells: codes with sentences, and a report that fits where it travels."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from finetune_api.failures import FAILURES, Failure, FailureCode
from finetune_api.findings import DATA_SENTENCES, DataErrorCode
from finetune_api.names import PROGRESS_BYTES
from finetune_api.progress import MAX_METRICS
from finetune_api.report import EarlyStop, Report, WarningCode
from finetune_api.status import MAX_CHECKPOINTS, Checkpoint, CheckpointType, Metrics, Progress
from finetune_api.trainer import NOT_RETRIED, ExitCode, Stage
from finetune_operator.plan.state import Pod
from finetune_operator.plan.told import last_word
from manifests import ROOT
from previous import as_previous

PROGRESS = Progress(display="1/2", step=1, total_steps=2, percentage=50)
RETRIED = {ExitCode.DATA_UNREACHABLE, ExitCode.MODEL_UNREACHABLE, ExitCode.PUBLISH_FAILED}


@pytest.mark.parametrize("code", DataErrorCode)
def test_every_data_error_has_a_sentence(code) -> None:
    assert len(DATA_SENTENCES[code]) > 20


@pytest.mark.parametrize("code", FailureCode)
def test_every_failure_has_an_exit_code_and_a_sentence(code) -> None:
    exit_code, sentence = FAILURES[code]
    assert exit_code is not ExitCode.DONE
    assert sentence
    assert (exit_code in NOT_RETRIED) == (exit_code not in RETRIED | {ExitCode.STOPPED})


@pytest.mark.parametrize("code", WarningCode)
def test_every_warning_is_explained_in_the_operations_page(code) -> None:
    warnings = (ROOT / "docs" / "operations.md").read_text().partition("### Warnings")[2].partition("\n## ")[0]
    assert code.value in warnings


def test_a_sentence_is_rendered_from_its_values() -> None:
    failure = Failure(code=FailureCode.DATA_NOT_FOUND, args={"uri": "pvc://a/b", "field": "trainingFile"})
    assert failure.sentence == "pvc://a/b does not exist or may not be read: check trainingFile"
    assert failure.exit_code is ExitCode.DATA_UNREACHABLE


def test_a_value_that_was_not_sent_keeps_its_name() -> None:
    assert Failure(code=FailureCode.STOPPED).sentence == "stopped on request after step {step}"


@pytest.mark.parametrize("evil", ["{code.__class__}", "{0}", "{", "%s"])
def test_a_value_is_never_a_template(evil) -> None:
    failure = Failure(code=FailureCode.MODEL_NOT_FOUND, args={"uri": evil})
    assert failure.sentence == f"the model {evil} does not exist or may not be read"


def test_the_fullest_report_fits_the_progress_answer() -> None:
    values = {f"metric{n}": 0.12345678901234567 for n in range(MAX_METRICS)}
    checkpoint = Checkpoint(
        name="a" * 52 + ":1000",
        step=1000,
        type=CheckpointType.INTERMEDIATE,
        uri="pvc://" + "c" * 200,
        time="2026-01-01T00:00:00Z",
        size_bytes=10**12,
        sha256="f" * 64,
        metrics=values,
    )
    report = Report(
        job_uid="u" * 36,
        pod_uid="p" * 36,
        stage=Stage.TRAIN,
        metrics=Metrics(train=values, eval=values),
        checkpoints=(checkpoint,) * MAX_CHECKPOINTS,
    )
    assert len(report.model_dump_json(exclude_none=True)) < PROGRESS_BYTES


def test_a_report_travels_as_json() -> None:
    report = Report(job_uid="a", stage=Stage.PREPARE, failure=Failure(code=FailureCode.STOPPED, args={"step": "3"}))
    assert Report.model_validate_json(report.model_dump_json(exclude_none=True)) == report


def test_reports_pass_between_releases() -> None:
    """The previous operator reads a report that tells nothing new, and this one whatever the previous trainer says."""
    report = Report(
        job_uid="u", pod_uid="p", stage=Stage.TRAIN, progress=PROGRESS, metrics=Metrics(train={"loss": 1.0})
    )
    (answer,) = as_previous("finetune_api.report", "Report", [json.dumps(report.to_json())])
    assert Report.model_validate(answer["read"]) == report
    told_new = report.model_copy(update={"early_stop": EarlyStop(metric="loss", step=1, evaluations=2, best_step=1)})
    (answer,) = as_previous("finetune_api.report", "Report", [json.dumps(told_new.to_json())])
    assert answer["refused"] == [["earlyStop", "extra_forbidden"]]


def test_what_a_newer_trainer_tells_is_not_guessed_at() -> None:
    """A report with an unknown field or code is none: the exit code alone decides then."""
    told = Report(job_uid="u", pod_uid="p", stage=Stage.TRAIN, finished=True).to_json()
    pod = Pod(name="p", uid="p", job_uid="j", created="", last_word=json.dumps(told))
    assert last_word(pod, "u") is not None
    for newer in ({"novelty": 1}, {"failure": {"code": "NotInventedYet"}}):
        assert last_word(replace(pod, last_word=json.dumps({**told, **newer})), "u") is None
