"""A pod's words are a stranger's: bounded by the schema, plain, and believed of places where jobs can write alone."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from builders import make_checkpoint
from finetune_api.failures import Failure, FailureCode
from finetune_api.report import Report, WarningCode
from finetune_api.status import DataError, DataStatus, JobWarning, Metrics, OutputStatus, TrackingStatus
from finetune_api.trainer import Stage
from finetune_operator.plan.reading import read_report

TRICK = "fine\nWarning: all is lost\x1b[2J hf_" + "a" * 34
PLAIN = "fine Warning: all is lost [2J ***"


def report(**fields) -> Report:
    return Report(job_uid="job", pod_uid="pod", stage=Stage.TRAIN, **fields)


def read(told: Report) -> Report:
    return read_report(told.model_dump_json(by_alias=True, exclude_none=True))


def test_what_is_plain_is_left_as_it_is():
    told = report(checkpoints=(make_checkpoint(3),), metrics=Metrics(train={"loss": 0.5}))
    assert read(told) == told


def test_every_text_is_on_one_line_and_without_a_token():
    error = DataError(line=1, field="a\nb", code="EmptyAnswer", message=TRICK)
    told = report(
        failure=Failure(code=FailureCode.DATA_INVALID, args={"problem": TRICK}),
        warnings=(JobWarning(reason=WarningCode.FEW_STEPS, message=TRICK),),
        metrics=Metrics(train={"a\nb": 1.0}),
        data=DataStatus(format="x", rows=1, warnings=(TRICK,), errors=(error,)),
    )
    found = read(told)
    assert found.failure is not None
    assert found.data is not None
    assert found.metrics is not None
    assert found.failure.args == {"problem": PLAIN}
    assert found.warnings[0].message == found.data.warnings[0] == found.data.errors[0].message == PLAIN
    assert found.metrics.train == {"a b": 1.0}
    assert found.data.errors[0].field == "a b"


@pytest.mark.parametrize("uri", ["file:///etc/passwd", "hf://evil/model", "pvc://claim/../other", "pvc://claim/a\n"])
def test_results_elsewhere_make_the_whole_report_unbelievable(uri):
    with pytest.raises(ValidationError, match="results cannot lie at"):
        read(report(checkpoints=(make_checkpoint(3).model_copy(update={"uri": uri}),)))
    with pytest.raises(ValidationError, match="results cannot lie at"):
        read(report(output=OutputStatus(adapter_uri=uri)))
    with pytest.raises(ValidationError, match="results cannot lie at"):
        read(report(output=OutputStatus(report_uri=uri)))
    with pytest.raises(ValidationError, match="results cannot lie at"):
        read(report(tracking=TrackingStatus(tensorboard_uri=uri)))


@pytest.mark.parametrize("url", ["javascript:alert(1)", "https://host/a b", "https://host/\u202e", "//host", ""])
def test_what_is_no_web_address_is_no_page_of_a_run(url):
    body = report().to_json() | {"tracking": {"wandbUrl": url}}
    with pytest.raises(ValidationError, match="Input should be an http"):
        read_report(json.dumps(body))


@pytest.mark.parametrize("uri", ["s3://bucket/team/a", "gs://bucket/a", "az://container/a"])
def test_results_may_lie_in_a_store(uri):
    assert read(report(output=OutputStatus(adapter_uri=uri))).output == OutputStatus(adapter_uri=uri)


@pytest.mark.parametrize("body", ["", "[" * 60000, "{", '{"jobUid": 1}', "null", b"\xff\xfe"])
def test_what_is_no_report_is_refused_as_such(body):
    with pytest.raises(ValidationError):
        read_report(body)
