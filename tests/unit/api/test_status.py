"""A job's status: which condition holds, and when nothing changes any more."""

from __future__ import annotations

import pytest

from finetune_api.status import (
    Condition,
    ConditionStatus,
    ConditionType,
    JobStatus,
    Metrics,
    Phase,
    Reason,
    Resolved,
    ResolvedRuntime,
)


def status(**conditions: ConditionStatus) -> JobStatus:
    """A status with these conditions."""
    held = [
        Condition(type=name, status=value, reason="R", message="", last_transition_time="2026-01-01T00:00:00Z")
        for name, value in conditions.items()
    ]
    return JobStatus(conditions=tuple(held))


def test_a_condition_is_found_by_its_type() -> None:
    found = status(Running=ConditionStatus.TRUE).condition(ConditionType.RUNNING)
    assert found is not None
    assert found.status is ConditionStatus.TRUE
    assert status().condition(ConditionType.RUNNING) is None


@pytest.mark.parametrize(
    ("conditions", "final"),
    [
        ({}, False),
        ({"Accepted": ConditionStatus.FALSE}, False),
        ({"Complete": ConditionStatus.UNKNOWN}, False),
        ({"Failed": ConditionStatus.FALSE}, False),
        ({"Complete": ConditionStatus.TRUE}, True),
        ({"Failed": ConditionStatus.TRUE}, True),
    ],
)
def test_complete_and_failed_are_final(conditions, final) -> None:
    assert status(**conditions).is_final is final


@pytest.mark.parametrize("word", [*Phase, *ConditionType, *Reason])
def test_words_are_camel_case_as_the_api_conventions_have_it(word) -> None:
    assert word.isalnum()
    assert word[0].isupper()
    assert len(word) <= 64


def test_what_is_empty_is_not_written_but_in_the_frozen_runtime():
    runtime = ResolvedRuntime(name="gpu", generation=1, spec={"podTemplate": {}, "models": []})
    status = JobStatus(metrics=Metrics(train={}, eval={"loss": 1.0}), resolved=Resolved(runtime=runtime), restarts=0)
    document = status.to_json()
    assert document["metrics"] == {"eval": {"loss": 1.0}}
    assert document["resolved"] == {"runtime": {"name": "gpu", "generation": 1, "spec": runtime.spec}}
    assert document["restarts"] == 0
    assert JobStatus.model_validate(document) == status
    assert "metrics" not in JobStatus(metrics=Metrics()).to_json()
