"""A read is shared by all who asked before it began, and by nobody who asked later."""

from __future__ import annotations

import asyncio
import time

import pytest

from finetune_operator.shared import Shared


class Source:
    """Something that changes while it is read."""

    def __init__(self) -> None:
        self.begun, self.at_once, self.most = 0, 0, 0
        self.broken = False

    async def read(self) -> int:
        self.begun += 1
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        seen = self.begun
        await asyncio.sleep(0.02)
        self.at_once -= 1
        if self.broken:
            raise OSError("broken")
        return seen


def test_many_who_ask_at_once_share_one_read_and_those_who_ask_meanwhile_the_next():
    async def story() -> None:
        source, shared = Source(), Shared(time.monotonic)
        first = [asyncio.create_task(shared.read("a", source.read)) for _ in range(10)]
        await asyncio.sleep(0.005)
        assert source.begun == 1
        later = [asyncio.create_task(shared.read("a", source.read)) for _ in range(10)]
        assert await asyncio.gather(*first) == [1] * 10
        assert await asyncio.gather(*later) == [2] * 10, "the first read had begun before they asked"
        assert (source.begun, source.most) == (2, 1)
        assert await shared.read("a", source.read) == 3

    asyncio.run(story())


def test_different_things_are_read_side_by_side():
    async def story() -> None:
        source, shared = Source(), Shared(time.monotonic)
        await asyncio.gather(shared.read("a", source.read), shared.read("b", source.read))
        assert (source.begun, source.most) == (2, 2)

    asyncio.run(story())


def test_a_failure_is_everybodys_and_the_next_read_is_another():
    async def story() -> None:
        source, shared = Source(), Shared(time.monotonic)
        source.broken = True
        asked = [asyncio.create_task(shared.read("a", source.read)) for _ in range(3)]
        assert [type(e) for e in await asyncio.gather(*asked, return_exceptions=True)] == [OSError] * 3
        source.broken = False
        assert await shared.read("a", source.read) == 2

    asyncio.run(story())


def test_one_askers_end_is_not_the_others():
    async def story() -> None:
        source, shared = Source(), Shared(time.monotonic)
        one, other = (asyncio.create_task(shared.read("a", source.read)) for _ in range(2))
        await asyncio.sleep(0.005)
        one.cancel()
        with pytest.raises(asyncio.CancelledError):
            await one
        assert await other == 1

    asyncio.run(story())


def test_a_question_that_is_older_than_an_answer_takes_it_for_a_while():
    async def story() -> None:
        now = 100.0
        source, shared = Source(), Shared(lambda: now)
        assert await shared.read("a", source.read) == 1
        assert await shared.read("a", source.read, since=99.9) == 1
        assert await shared.read("a", source.read, since=100.0) == 2, "what was read may be older than the question"
        now = 102.5
        assert await shared.read("a", source.read, since=99.9) == 3, "an old answer"
        now = 110.0
        await shared.read("b", source.read)
        assert list(shared._kept) == ["b"], "old answers are not kept"

    asyncio.run(story())


def test_what_was_not_there_is_looked_for_again():
    async def story() -> None:
        answers = iter([None, "there"])

        async def read() -> str | None:
            return next(answers)

        shared = Shared(lambda: 100.0)
        assert await shared.read("a", read) is None
        assert await shared.read("a", read, since=99.0) == "there"

    asyncio.run(story())
