"""Every file in fixtures/invalid is refused by pydantic with the message of its first line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from finetune_api.crd import job_crd, runtime_crd
from finetune_api.job import job_from
from judges import broken_by_change, pydantic_verdict
from manifests import INVALID, expected_message, read


@pytest.mark.parametrize("path", INVALID, ids=lambda path: path.stem)
def test_refused_by_pydantic_with_its_message(path) -> None:
    *old, new = read(path)
    if old:
        assert expected_message(path) in broken_by_change(job_from(old[0]), job_from(new))
    else:
        assert expected_message(path) in pydantic_verdict(new).refusals


def test_every_rule_has_a_fixture() -> None:
    expected = {expected_message(path) for path in INVALID}
    messages = {*rule_messages(job_crd()), *rule_messages(runtime_crd())}
    assert len(messages) > 10
    assert messages <= expected


def rule_messages(node: Any) -> Iterator[str]:
    """The sentences of all rules in a CRD."""
    if isinstance(node, dict):
        yield from (rule["message"] for rule in node.get("x-kubernetes-validations", []))
        for child in node.values():
            yield from rule_messages(child)
    elif isinstance(node, list):
        for child in node:
            yield from rule_messages(child)
