"""A job's status: which condition holds, and when nothing changes any more."""

from __future__ import annotations

import pytest

from finetune_api.status import Condition, ConditionStatus, ConditionType, JobStatus, Phase, Reason


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
