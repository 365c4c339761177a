"""Events are told in the background, in their order, and never hold anything up."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

from builders import NOW, make_job
from finetune_operator import announce
from finetune_operator.announce import Announcer
from finetune_operator.client import Unavailable
from finetune_operator.plan.state import Event

METADATA = make_job().metadata


def told(*events: Event, seconds: float = 0.3, waiting: int = 0) -> list[str]:
    """The messages that arrive of these events, where the API server refuses every third."""

    class Cluster:
        def __init__(self) -> None:
            self.asked: list[dict[str, Any]] = []

        async def create(self, _: Any, manifest: dict[str, Any]) -> None:
            self.asked.append(manifest)
            if len(self.asked) % 3 == 0:
                raise Unavailable("not now")

    async def story() -> list[str]:
        cluster: Any = Cluster()
        announcer = Announcer(cluster, lambda: waiting)
        announcer.tell(METADATA, events, NOW)
        assert cluster.asked == [], "nobody has waited for it"
        task = asyncio.create_task(announcer.run())
        await asyncio.sleep(seconds)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        return [manifest["message"] for manifest in cluster.asked]

    return asyncio.run(story())


def test_they_come_in_their_order_and_a_refused_one_stops_none(monkeypatch):
    monkeypatch.setattr(announce, "GAP_SECONDS", 0.0)
    assert told(*(Event("Normal", "Running", str(n)) for n in range(7))) == [str(n) for n in range(7)]


def test_they_are_spread_over_time(monkeypatch):
    monkeypatch.setattr(announce, "GAP_SECONDS", 0.1)
    assert len(told(*(Event("Normal", "Running", str(n)) for n in range(100)))) <= 4


def test_jobs_that_wait_for_a_look_come_first(monkeypatch):
    monkeypatch.setattr(announce, "GAP_SECONDS", 0.01)
    monkeypatch.setattr(announce, "BUSY_GAPS", 1000)
    assert told(*(Event("Normal", "Running", str(n)) for n in range(5)), waiting=1) == ["0"]


def test_of_too_many_the_oldest_are_dropped(monkeypatch):
    monkeypatch.setattr(announce, "MOST_WAITING", 5)
    monkeypatch.setattr(announce, "GAP_SECONDS", 0.0)
    assert told(*(Event("Normal", "Running", str(n)) for n in range(8))) == ["3", "4", "5", "6", "7"]
