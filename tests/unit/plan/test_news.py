"""A status is written when something changed, and progress alone is told from what cannot wait."""

from __future__ import annotations

import pytest

from builders import NOW_TEXT, make_checkpoint, make_progress, make_recovery
from finetune_api.status import Condition, ConditionStatus, JobStatus, Metrics
from finetune_operator.plan.news import News, news

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
