"""How a stop is carried out: in a queue the mark comes first and goes last, and spec.suspend is left to Kueue."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from builders import make_child, make_job
from finetune_api.names import PARKED_LABEL, QUEUE_LABEL
from finetune_api.status import JobStatus
from finetune_api.trainer import Stage
from finetune_operator.apply import apply_objects
from finetune_operator.client import NotFound
from finetune_operator.plan.state import Plan, Workload


class Calls:
    """A cluster that remembers what is asked of it."""

    def __init__(self, missing: str = "") -> None:
        self.made: list[Any] = []
        self._missing = missing

    async def hold(self, _: str, name: str, uid: str, **asked: Any) -> None:
        self.made.append((name, {key: value for key, value in asked.items() if value is not None}))

    async def activate(self, _: str, name: str, uid: str, *, active: bool) -> None:
        if name == self._missing:
            raise NotFound(name)
        self.made.append((name, active))


def done(calls: Calls, *, resume: bool = False, **fields: Any) -> list[Any]:
    """The calls for one child."""
    child = make_child(make_job(), Stage.TRAIN, **fields)
    plan = Plan(JobStatus(), resume=(child,)) if resume else Plan(JobStatus(), suspend=(child,))
    cluster: Any = calls
    assert asyncio.run(apply_objects(plan, "team", cluster)) is None
    return calls.made


@pytest.mark.parametrize("suspended", [True, False])
def test_without_a_queue_a_job_is_held_by_its_own_field(suspended):
    assert done(Calls(), suspended=suspended, mark="m") == [("tune-train", {"suspend": suspended, "mark": "m"})]


def test_in_a_queue_the_mark_comes_first_and_goes_last():
    workload = Workload("w", "u", active=False)
    held = done(Calls(), queue="team", suspended=True, mark="m", workload=workload)
    assert held == [("tune-train", {"mark": "m"}), ("w", False)]
    again = done(Calls(), resume=True, queue="team", suspended=True, workload=Workload("w", "u"))
    assert again == [("w", True), ("tune-train", {})]


def test_without_a_workload_the_label_is_parked_and_comes_back():
    out = done(Calls(), suspended=True, mark="m", parked="team")
    labels = {QUEUE_LABEL: None, PARKED_LABEL: "team"}
    assert out == [("tune-train", {"suspend": True, "mark": "m", "labels": labels})]
    back = done(Calls(), resume=True, suspended=True, queue="team")
    assert back == [("tune-train", {"labels": {QUEUE_LABEL: "team", PARKED_LABEL: None}})]


def test_a_workload_that_is_gone_is_for_the_next_look():
    workload = Workload("w", "u", active=False)
    assert done(Calls("w"), queue="team", mark="m", workload=workload) == [("tune-train", {"mark": "m"})]
