"""Every file in fixtures/invalid is refused by pydantic with the message of its first line."""

from __future__ import annotations

import pytest

from finetune_api.crd import job_crd, runtime_crd
from finetune_api.job import job_from
from judges import broken_by_change, pydantic_verdict
from manifests import INVALID, expected_message, read
from specs import validations


@pytest.mark.parametrize("path", INVALID, ids=lambda path: path.stem)
def test_refused_by_pydantic_with_its_message(path) -> None:
    *old, new = read(path)
    if old:
        assert expected_message(path) in broken_by_change(job_from(old[0]), job_from(new))
    else:
        assert expected_message(path) in pydantic_verdict(new).refusals


def test_there_are_many_of_them() -> None:
    assert len(INVALID) > 60


def test_every_rule_has_a_fixture() -> None:
    expected = {expected_message(path) for path in INVALID}
    messages = {rule["message"] for crd in (job_crd(), runtime_crd()) for rule in validations(crd)}
    assert len(messages) > 10
    assert messages <= expected
