"""Progress is written a number of times per second over all jobs, the longest unwritten first."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

from finetune_operator.pace import Pace
from finetune_operator.queue import Key

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
