"""A status is written when something changed, and progress alone is told from what cannot wait."""

from __future__ import annotations

import pytest

from builders import JOB_UID, NOW_TEXT, make_checkpoint, make_progress, make_recovery
from finetune_api.report import Report
from finetune_api.status import Checkpoint, Condition, ConditionStatus, JobStatus, Metrics
from finetune_api.trainer import Stage
from finetune_operator.plan.news import News, news, urgent_part
from finetune_operator.plan.reading import read_report

STORED = JobStatus(
    start_time=NOW_TEXT, progress=make_progress(3).model_copy(update={"last_report_time": "2026-01-01T00:00:00Z"})
)
TOLD = Condition(
    type="Running", status=ConditionStatus.TRUE, reason="Running", message="", last_transition_time=NOW_TEXT
)


def progress(step: int, at: str) -> dict[str, object]:
    return {"progress": make_progress(step).model_copy(update={"last_report_time": at})}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, News.NONE),
        (progress(3, "2026-01-01T00:00:59Z"), News.NONE),
        (progress(3, "2026-01-01T00:01:00Z"), News.PROGRESS),
        (progress(4, "2026-01-01T00:00:10Z"), News.PROGRESS),
        ({"metrics": Metrics(train={"loss": 1.0})}, News.PROGRESS),
        ({"recovery": make_recovery(3)}, News.PROGRESS),
        ({"conditions": (TOLD,)}, News.EVENT),
        ({"checkpoints": (make_checkpoint(3),)}, News.EVENT),
        ({"restarts": 1}, News.EVENT),
    ],
)
def test_what_a_difference_amounts_to(change, expected):
    assert news(STORED, STORED.model_copy(update=change)) is expected


def test_the_first_status_is_news():
    assert news(None, JobStatus()) is News.EVENT


def test_a_status_read_back_from_the_api_server_is_no_news():
    written = STORED.model_copy(update={"metrics": Metrics(train={"loss": 1.0}), "checkpoints": (make_checkpoint(3),)})
    assert news(JobStatus.model_validate(written.to_json()), written) is News.NONE


def report(*checkpoints: Checkpoint) -> Report:
    return Report(job_uid=JOB_UID, pod_uid="p", stage=Stage.TRAIN, checkpoints=checkpoints)


def test_a_figure_that_is_no_number_is_no_news_each_time_it_is_read():
    """An evaluation that has diverged puts a NaN beside its checkpoint, which equals nothing, not even itself."""
    lost = make_checkpoint(3).model_copy(update={"metrics": {"evalLoss": 0.5}})
    said = report(lost).model_dump_json().replace("0.5", "NaN").encode()
    assert b"NaN" in said
    first, second = (urgent_part(read_report(said)) for _ in range(2))
    assert first == second


def test_a_new_checkpoint_and_its_figures_cannot_wait():
    one, other = make_checkpoint(3), make_checkpoint(3).model_copy(update={"metrics": {"evalLoss": 0.5}})
    assert len({urgent_part(report()), urgent_part(report(one)), urgent_part(report(other))}) == 3
