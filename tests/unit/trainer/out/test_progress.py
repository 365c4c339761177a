"""GET /progress for the right job only, and a last word that always fits."""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.request

import pytest

from finetune_api import names
from finetune_api.failures import Failure, FailureCode
from finetune_api.findings import DataErrorCode
from finetune_api.report import Report
from finetune_api.status import (
    Checkpoint,
    CheckpointType,
    DataError,
    DataStatus,
    JobWarning,
    Metrics,
    TokenStatistics,
    TrackingStatus,
)
from finetune_api.trainer import JobIdentity, Stage
from finetune_trainer.out import progress
from finetune_trainer.out.progress import Reporter, fitted

JOB = JobIdentity(namespace="ml", name="dpo", uid="uid-1")


@pytest.fixture
def reporter(monkeypatch):
    monkeypatch.setattr(progress, "WAIT_SECONDS", 10.0)
    return Reporter(JOB, Stage.TRAIN, "pod-1")


def get(port, path="/progress", uid="uid-1", recorded=None):
    headers = {names.PROGRESS_HEADER: uid, **({names.RECORDED_HEADER: recorded} if recorded is not None else {})}
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers=headers)
    with urllib.request.urlopen(request, timeout=5) as answer:
        return answer.status, answer.read()


def status_of(port, **request):
    try:
        return get(port, **request)[0]
    except urllib.error.HTTPError as error:
        with error:
            return error.code


@pytest.fixture
def port(reporter, tmp_path):
    port = reporter.serve(0)
    yield port
    if not reporter.report.finished:
        threading.Thread(target=lambda: time.sleep(0.05) or status_of(port, recorded="pod-1")).start()
        assert reporter.last_word(None, threading.Event(), tmp_path / "none")


def test_the_report_is_served_as_it_changes(reporter, port):
    reporter.update(resumed_from_step=3, metrics=Metrics(train={"loss": 0.5}))
    code, body = get(port)
    assert code == 200
    assert Report.model_validate_json(body) == reporter.report
    assert json.loads(body)["podUid"] == "pod-1"


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        ({"uid": "uid-2"}, 404),
        ({"uid": ""}, 404),
        ({"path": "/"}, 404),
        ({"path": "/progress?x=1"}, 404),
        ({"path": "/healthz", "uid": ""}, 200),
    ],
)
def test_a_question_for_another_job_or_path_finds_nothing(port, request_, code):
    assert status_of(port, **request_) == code


def test_the_last_word_is_written_and_waits_until_it_is_recorded(reporter, port, tmp_path):
    message = tmp_path / "termination-log"
    message.touch()
    failure = Failure(code=FailureCode.DIVERGED, args={"step": "7", "learningRate": "0.1"})
    assert status_of(port, recorded="pod-1") == 200, "of what is not the end, nothing is to be recorded"
    ending = threading.Thread(target=reporter.last_word, args=(failure, threading.Event(), message))
    ending.start()
    ending.join(0.3)
    assert ending.is_alive(), "nobody has fetched it"
    last = Report.model_validate_json(get(port)[1])
    assert (last.finished, last.failure) == (True, failure)
    assert [status_of(port, recorded=told) for told in ("", "pod-2")] == [200, 200]
    assert status_of(port, uid="uid-2", recorded="pod-1") == 404
    ending.join(0.3)
    assert ending.is_alive(), "it was fetched, and is not recorded"
    assert status_of(port, recorded="pod-1") == 200
    ending.join(5)
    assert not ending.is_alive()
    assert Report.model_validate_json(message.read_bytes()) == last
    with pytest.raises(OSError):
        get(port)


@pytest.mark.parametrize(("stop_after", "least", "most"), [(None, 2.0, 9), (0.0, 0.2, 1.2), (0.5, 0.7, 1.7)])
def test_nobody_is_waited_for_longer_than_that(reporter, monkeypatch, tmp_path, stop_after, least, most):
    """And not that long once the pod is asked to end, before or while it waits."""
    monkeypatch.setattr(progress, "WAIT_SECONDS", 2.0)
    monkeypatch.setattr(progress, "WAIT_SECONDS_AFTER_STOP", 0.2)
    reporter.serve(0)
    stopping = threading.Event()
    if stop_after is not None:
        threading.Timer(stop_after, stopping.set).start()
    began = time.monotonic()
    assert not reporter.last_word(None, stopping, tmp_path / "none")
    assert least <= time.monotonic() - began < most
    assert not (tmp_path / "none").exists(), "a laptop has no termination log"


def large_report():
    text = "ü" * 250
    return Report(
        job_uid="uid-1",
        stage=Stage.PREPARE,
        finished=True,
        failure=Failure(code=FailureCode.DATA_INVALID, args=dict.fromkeys(("count", "file", "problem"), text)),
        data=DataStatus(
            rows=10**9,
            tokens={str(side): TokenStatistics(p50=1, p95=2, max=3) for side in range(8)},
            warnings=(text,) * 20,
            errors=tuple(
                DataError(line=line, field="x" * 128, code=DataErrorCode.WRONG_TYPE, message=text) for line in range(20)
            ),
            error_count=12345,
        ),
        tracking=TrackingStatus(wandb_url="https://" + "w" * 2000, tensorboard_uri="pvc://" + "u" * 1000),
        warnings=tuple(JobWarning(reason="R", message=text, step=step) for step in range(20)),
        checkpoints=tuple(
            Checkpoint(
                name=f"dpo:{step}",
                step=step,
                type="Intermediate",
                uri="pvc://" + "u" * 1000,
                time="2026-01-01T00:00:00Z",
                size_bytes=1,
                sha256="a" * 64,
            )
            for step in range(33)
        ),
    )


@pytest.mark.parametrize("size", [1500, 4096, 16384, 65536])
def test_a_report_is_cut_to_fit_and_stays_a_report(size):
    body = fitted(large_report(), size)
    assert len(body) <= size
    cut = Report.model_validate_json(body)
    assert (cut.job_uid, cut.finished, cut.failure.code) == ("uid-1", True, FailureCode.DATA_INVALID)
    if size >= 4096:
        assert cut.data.error_count == 12345
        assert [error.line for error in cut.data.errors] == list(range(len(cut.data.errors))), "the last go first"
        assert cut.checkpoints[-1].step == 32, "the newest stays"


def test_of_the_last_two_checkpoints_the_final_adapter_outlives_its_merged_form():
    large = large_report()
    final, merged = (large.checkpoints[0].model_copy(update={"type": kind}) for kind in list(CheckpointType)[1:])
    report = Report(job_uid="u", stage=Stage.TRAIN, checkpoints=(*large.checkpoints[1:], final, merged))
    kept = {
        size: [c.type for c in Report.model_validate_json(fitted(report, size)).checkpoints] for size in (3000, 2000)
    }
    assert kept == {3000: ["Final", "FinalMerged"], 2000: ["Final"]}


def test_bad_rows_keep_their_place_in_a_termination_message():
    errors = tuple(DataError(line=n, field="input.messages", code=DataErrorCode.EMPTY_ANSWER) for n in range(20))
    report = Report(job_uid="u", stage=Stage.PREPARE, data=DataStatus(errors=errors, error_count=20))
    cut = Report.model_validate_json(fitted(report, names.TERMINATION_MESSAGE_BYTES))
    assert cut.data.errors == errors


def test_a_report_is_strict_json(reporter):
    reporter.update(metrics=Metrics.model_construct(train={"loss": float("nan")}, eval={}))
    with pytest.raises(ValueError):
        fitted(reporter.report, 4096)


def test_whoever_listens_hears_every_change(tmp_path):
    heard = []
    reporter = Reporter(JOB, Stage.TRAIN, None, heard.append)
    reporter.update(resumed_from_step=1)
    reporter.update(publishing=True)
    assert [(r.resumed_from_step, r.publishing) for r in heard] == [(1, False), (1, True)]
