"""Each key once, one worker per key, back-off with jitter, looks at a later time."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import pytest

from finetune_operator.queue import PATIENCE_SECONDS, Key, RetryLater, WorkQueue

A, B = ("team", "a"), ("team", "b")


@asynccontextmanager
async def running(queue: WorkQueue, work: Callable[[Key], Awaitable[float | None]], workers: int = 4):
    task = asyncio.create_task(queue.run(work, workers))
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def make_queue() -> WorkQueue:
    return WorkQueue(asyncio.get_running_loop().time, random.Random(1))


async def until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.002)


def test_a_key_added_many_times_before_a_worker_is_free_is_done_once():
    async def story():
        queue, done = make_queue(), []

        async def work(key: Key) -> None:
            done.append(key)

        for _ in range(5):
            await queue.add(A)
        await queue.add(B)
        assert queue.depth() == 2
        async with running(queue, work):
            await until(lambda: len(done) == 2)
            await asyncio.sleep(0.02)
        assert sorted(done) == [A, B]

    asyncio.run(story())


def test_work_knows_when_its_key_was_last_added():
    async def story():
        now, told = 1.0, []
        queue = WorkQueue(lambda: now)

        async def work(key: Key) -> None:
            nonlocal now
            told.append(queue.told(key))
            if len(told) == 1:
                now = 3.0
                await queue.add(key)
                told.append(queue.told(key))
                now = 4.0

        await queue.add(A)
        now = 2.0
        await queue.add(A)
        async with running(queue, work):
            await until(lambda: len(told) == 3)
        assert told == [2.0, 3.0, 3.0]
        assert queue.told(A) == now, "of a key that nobody works on nothing is known"

    asyncio.run(story())


def test_one_key_is_never_worked_on_twice_at_once_and_is_done_again_if_added_meanwhile():
    async def story():
        queue, at_once, most, done = make_queue(), 0, 0, 0

        async def work(_: Key) -> None:
            nonlocal at_once, most, done
            at_once += 1
            most = max(most, at_once)
            await asyncio.sleep(0.02)
            at_once -= 1
            done += 1

        async with running(queue, work):
            await queue.add(A)
            await until(lambda: at_once == 1)
            for _ in range(3):
                await queue.add(A)
            await until(lambda: done == 2)
            await asyncio.sleep(0.05)
        assert (most, done) == (1, 2)

    asyncio.run(story())


def test_two_keys_are_worked_on_side_by_side():
    async def story():
        queue, together = make_queue(), asyncio.Barrier(2)

        async def work(_: Key) -> None:
            await together.wait()

        async with running(queue, work, workers=2):
            await queue.add(A)
            await queue.add(B)
            await until(lambda: queue.depth() == 0 and not together.n_waiting)

    asyncio.run(story())


def test_work_that_wants_another_look_gets_it_at_its_time():
    async def story():
        queue, times = make_queue(), []

        async def work(_: Key) -> float | None:
            times.append(asyncio.get_running_loop().time())
            return 0.1 if len(times) == 1 else None

        async with running(queue, work):
            await queue.add(A)
            await until(lambda: len(times) == 2)
            await asyncio.sleep(0.15)
        assert len(times) == 2
        assert 0.09 <= times[1] - times[0] < 0.5

    asyncio.run(story())


def test_an_event_comes_before_a_later_look_and_takes_its_place():
    async def story():
        queue, done = make_queue(), 0

        async def work(_: Key) -> None:
            nonlocal done
            done += 1

        async with running(queue, work):
            await queue.add_after(A, 0.05)
            await queue.add(A)
            await until(lambda: done == 1)
            await asyncio.sleep(0.1)
        assert done == 1

    asyncio.run(story())


def test_the_nearer_of_two_later_looks_wins():
    async def story():
        queue, done = make_queue(), []

        async def work(_: Key) -> None:
            done.append(asyncio.get_running_loop().time())

        begun = asyncio.get_running_loop().time()
        async with running(queue, work):
            await queue.add_after(A, 30.0)
            await queue.add_after(A, 0.05)
            await queue.add_after(A, 20.0)
            await until(lambda: len(done) == 1)
        assert done[0] - begun < 1.0

    asyncio.run(story())


@pytest.mark.parametrize("error", [RetryLater("the API server is down"), ValueError("a bug")])
def test_what_fails_comes_again_later_each_time_and_stops_nobody_else(error, caplog):
    async def story():
        queue, times, others = make_queue(), [], 0

        async def work(key: Key) -> None:
            nonlocal others
            if key == B:
                others += 1
                return
            times.append(asyncio.get_running_loop().time())
            if len(times) < 4:
                raise error

        async with running(queue, work, workers=1):
            await queue.add(A)
            await until(lambda: len(times) == 1)
            await queue.add(B)
            await until(lambda: len(times) == 4, seconds=10)
        assert others == 1
        waits = [later - earlier for earlier, later in itertools.pairwise(times)]
        for number, wait in enumerate(waits):
            assert 0.5 * 0.5 * 2**number <= wait <= 0.5 * 2**number + 0.3

    asyncio.run(story())
    assert any("a bug" in str(record.exc_info) for record in caplog.records) == isinstance(error, ValueError)


def waits_after(error: RetryLater, times: int) -> list[float]:
    """Seconds between looks that all end with `error`, in a time that passes only when nobody works."""

    class Now:
        seconds = 0.0

    async def story() -> list[float]:
        looked: list[float] = []

        async def work(key: Key) -> None:
            if key == A:
                looked.append(Now.seconds)
                raise error

        queue = WorkQueue(lambda: Now.seconds, random.Random(0))
        async with running(queue, work):
            await queue.add(A)
            while len(looked) < times:
                await queue.add(B)  # who works sees what time it is
                await asyncio.sleep(0.001)
                Now.seconds += 0.1
        return [later - earlier for earlier, later in itertools.pairwise(looked)]

    return asyncio.run(story())


@pytest.mark.parametrize(("asked", "least"), [(0.0, 0.2), (7.0, 6.9)])
def test_what_a_server_asks_for_is_the_least_that_it_gets(asked, least):
    waits = waits_after(RetryLater("busy", after=asked), times=5)
    assert min(waits) >= least
    assert waits[-1] >= 2.0, "and each is longer than the one before, whatever it asks for"
    assert max(waits) <= 8.0


def test_a_server_that_asks_for_a_day_gets_two_minutes():
    (wait,) = waits_after(RetryLater("busy", after=86_400.0), times=2)
    assert 119.9 <= wait <= 121.0


def test_what_has_changed_meanwhile_is_looked_at_soon_but_not_for_ever():
    waits = waits_after(RetryLater("conflict", soon=True), times=10)
    assert waits[0] <= 0.31
    assert waits[-1] >= 0.1 * 2**8 / 2


def test_the_oldest_age_is_that_of_the_key_that_waits_longest():
    async def story():
        now = 100.0
        queue = WorkQueue(lambda: now)
        assert queue.oldest_age() == 0.0
        await queue.add(A)
        now = 130.0
        await queue.add(B)
        await queue.add(A)
        now = 140.0
        assert queue.oldest_age() == 40.0

    asyncio.run(story())


@pytest.mark.parametrize(
    ("passes", "order"),
    [(0.0, ["new", "newer", "news"]), (PATIENCE_SECONDS, ["new", "news", "newer"])],
)
def test_what_is_asked_for_goes_before_what_its_time_brings_unless_that_has_waited_for_long(passes, order):
    async def story() -> list[str]:
        now, done = 100.0, []
        queue = WorkQueue(lambda: now)

        async def work(key: Key) -> None:
            nonlocal now
            done.append(key[1])
            if key[1] == "new":
                now += passes
                await queue.add(("ns", "newer"))

        await queue.add_after(("ns", "news"), 0.0)
        await queue.add(("ns", "new"))
        async with running(queue, work, workers=1):
            await until(lambda: len(done) == 3)
        assert (queue.depth(), queue.oldest_age()) == (0, 0.0)
        return done

    assert asyncio.run(story()) == order


def test_what_waits_because_its_time_has_come_may_be_asked_for_too():
    async def story() -> list[str]:
        done: list[str] = []
        queue = WorkQueue(lambda: 100.0)

        async def work(key: Key) -> None:
            done.append(key[1])
            if key[1] == "first":
                for name in ("a", "b"):
                    await queue.add_after(("ns", name), 0.0)
            elif key[1] == "a":
                await queue.add(("ns", "c"))
                await queue.add(("ns", "b"))

        await queue.add(("ns", "first"))
        async with running(queue, work, workers=1):
            await until(lambda: len(done) == 4)
            await asyncio.sleep(0.02)
        return done

    assert asyncio.run(story()) == ["first", "a", "c", "b"]


def test_a_closed_queue_ends_what_is_under_way_and_begins_nothing():
    async def story() -> tuple[list[str], list[str]]:
        begun: list[str] = []
        ended: list[str] = []
        go_on = asyncio.Event()

        async def work(key: Key) -> float | None:
            begun.append(key[1])
            await go_on.wait()
            ended.append(key[1])
            return None

        queue = WorkQueue(asyncio.get_running_loop().time)
        task = asyncio.create_task(queue.run(work, 2))
        for name in ("a", "b", "c"):
            await queue.add(("ns", name))
        await asyncio.sleep(0.05)
        closing = asyncio.create_task(queue.close())
        await asyncio.sleep(0.05)
        assert not closing.done()
        go_on.set()
        await asyncio.wait_for(closing, 2)
        await asyncio.sleep(0.05)
        task.cancel()
        return begun, ended

    assert asyncio.run(story()) == (["a", "b"], ["a", "b"])


def test_a_timer_that_is_overtaken_is_not_kept_until_its_time():
    """A job whose deadline is days ahead is looked at thousands of times until then."""

    async def story():
        queue = make_queue()
        for number in range(1000):
            await queue.add_after(("team", f"job-{number}"), 86400.0)
            await queue.add(("team", f"job-{number}"))
        assert len(queue._timers) < 100

    asyncio.run(story())
