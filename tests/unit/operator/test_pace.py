"""Progress is written a number of times per second over all jobs, the longest unwritten first."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest

from builders import NOW_TEXT, make_progress, report_for
from deaths import KEY, SilentPods, fresh_world, not_woken, reconciler, status_of
from finetune_api.trainer import Stage
from finetune_operator.client import Conflict
from finetune_operator.pace import Pace
from finetune_operator.plan.state import Heard, Pod
from finetune_operator.poll import Told
from finetune_operator.queue import Key, RetryLater
from simulated import SimulatedCluster

JOBS = [("team", name) for name in "abcdef"]


def paced(per_second: float, story: Callable[[Pace, list[Key]], Awaitable[None]]) -> list[Key]:
    """The keys that were woken, in their order, while `story` went on."""

    async def run() -> list[Key]:
        woken: list[Key] = []

        async def wake(key: Key) -> None:
            woken.append(key)

        pace = Pace(wake, per_second, asyncio.get_running_loop().time)
        task = asyncio.create_task(pace.run())
        await story(pace, woken)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        return woken

    return asyncio.run(run())


async def until(woken: list[Key], count: int) -> None:
    async with asyncio.timeout(5):
        while len(woken) < count:
            await asyncio.sleep(0.001)


def test_no_more_are_woken_than_the_budget_allows():
    async def story(pace: Pace, woken: list[Key]) -> None:
        begun = asyncio.get_running_loop().time()
        for key in JOBS:
            pace.wants(key)
        await until(woken, len(JOBS))
        assert asyncio.get_running_loop().time() - begun >= (len(JOBS) - 1) / 50

    assert sorted(paced(50, story)) == JOBS


def test_the_job_that_has_gone_unwritten_the_longest_comes_first():
    async def story(pace: Pace, woken: list[Key]) -> None:
        for key in JOBS:
            pace.looked(key, wrote=True)
            await asyncio.sleep(0.002)
        pace.wants(("team", "new"))
        for key in reversed(JOBS):
            pace.wants(key)
        await until(woken, len(JOBS) + 1)

    assert paced(500, story) == [("team", "new"), *JOBS]


def test_a_busy_job_does_not_starve_the_others():
    async def story(pace: Pace, woken: list[Key]) -> None:
        for key in JOBS:
            pace.wants(key)
        for count in range(1, 4 * len(JOBS) + 1):
            await until(woken, count)
            assert pace.may_write(woken[-1])
            pace.looked(woken[-1], wrote=True)
            for key in JOBS:
                pace.wants(key)
            await asyncio.sleep(0.001)

    woken = paced(1000, story)
    assert {woken[: 4 * len(JOBS)].count(key) for key in JOBS} == {4}


def test_a_look_for_another_reason_may_write_only_when_nobody_waits():
    async def story(pace: Pace, woken: list[Key]) -> None:
        assert pace.may_write(JOBS[0]), "nobody waits"
        assert not pace.may_write(JOBS[1]), "the budget of this moment is spent"
        assert pace.waiting() == 1
        await until(woken, 1)
        assert woken == [JOBS[1]]
        assert pace.may_write(JOBS[1]), "its turn has come"
        assert pace.may_write(JOBS[1]), "a write that did not succeed keeps its turn"
        pace.looked(JOBS[1], wrote=True)
        assert not pace.may_write(JOBS[1])

    paced(20, story)


def test_a_job_that_was_looked_at_or_is_gone_needs_no_waking():
    async def story(pace: Pace, woken: list[Key]) -> None:
        pace.wants(JOBS[0])
        await until(woken, 1)
        for key in JOBS:
            pace.wants(key)
        pace.looked(JOBS[1], wrote=True)
        pace.forget(JOBS[2])
        await until(woken, 4)
        await asyncio.sleep(0.05)

    assert sorted(paced(100, story)) == [JOBS[0], JOBS[3], JOBS[4], JOBS[5]]


def test_no_turns_pile_up_behind_jobs_that_wait_for_a_worker():
    """After a minute of an API server that hangs, all of them would be written at once."""

    async def story() -> tuple[int, int]:
        queued: list[Key] = []

        async def wake(key: Key) -> None:
            queued.append(key)

        pace = Pace(wake, 100, asyncio.get_running_loop().time, lambda: 10 * len(queued))
        task = asyncio.create_task(pace.run())
        for number in range(100):
            pace.wants(("team", str(number)))
        await asyncio.sleep(0.4)
        stuck = len(queued)
        queued.clear()
        await until(queued, 5)
        task.cancel()
        return stuck, sum(pace.may_write(("team", str(number))) for number in range(100))

    stuck, granted = asyncio.run(story())
    assert stuck == 11, "each stands for ten, and a second's worth may wait"
    assert granted <= stuck + 11


class Speaking(SilentPods):
    """Pods that run say how far they are."""

    step = 1

    def follow(self, _key: Key, _job: str, pods: Iterable[Pod]) -> Told:
        told = {p.uid: report_for(p, Stage.TRAIN, progress=make_progress(self.step)) for p in pods if p.running}
        return Told({uid: Heard(report, NOW_TEXT) for uid, report in told.items()})


def test_numbers_whose_write_met_a_conflict_are_not_tried_again_at_once():
    """Anything else is; numbers alone are not worth the requests of another look so soon."""
    world = fresh_world({Stage.PREPARE: [0], Stage.TRAIN: [0]})
    pods: Any = Speaking()
    conflicts = False

    def write() -> None:
        if conflicts:
            raise Conflict("somebody was quicker")

    cluster: Any = SimulatedCluster(world, write, lambda: None)
    looks = replace(reconciler(world, cluster), poller=pods, pace=Pace(not_woken, 10, itertools.count().__next__))
    while not any(p["status"]["phase"] == "Running" and "train" in p["metadata"]["name"] for p in world.of("pods")):
        asyncio.run(looks.look(KEY))
        world.step()
    conflicts = True
    with pytest.raises(RetryLater) as event:
        asyncio.run(looks.look(KEY))
    conflicts = False
    asyncio.run(looks.look(KEY))
    conflicts, pods.step = True, 2
    with pytest.raises(RetryLater) as numbers:
        asyncio.run(looks.look(KEY))
    assert (event.value.soon, numbers.value.soon) == (True, False)
    conflicts = False
    asyncio.run(looks.look(KEY))
    assert status_of(world).progress.step == 2
