"""One of several candidates has the lease, at every moment, whatever the API server answers."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Iterator
from typing import Any

import pytest

from builders import NOW
from finetune_operator.client import AlreadyExists, Conflict, NotFound, Resource, Unavailable
from finetune_operator.leader import Leader, LeaseLost
from finetune_operator.settings import LeaderElection

ELECTION = LeaderElection(
    namespace="system", name="op", lease_duration_seconds=1.0, renew_deadline_seconds=0.5, retry_period_seconds=0.1
)


class JumpingLoop(asyncio.SelectorEventLoop):
    """Its time jumps to the next timer instead of waiting for it: seconds take nothing, and no load disturbs them."""

    moment = 0.0

    def time(self) -> float:
        return self.moment

    def _run_once(self) -> None:
        if not self._ready and self._scheduled:
            self.moment = max(self.moment, self._scheduled[0].when())
        super()._run_once()


def run(story: Any) -> Any:
    """Run a coroutine on such a loop."""
    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        return runner.run(story)


class Server:
    """Keeps one lease as an API server does; `down` answers nothing, `deaf` writes but does not answer."""

    def __init__(self) -> None:
        self.lease: dict[str, Any] | None = None
        self.down = self.hangs = self.deaf = False
        self.version = 0

    async def get(self, _: Resource, namespace: str | None, name: str) -> dict[str, Any]:
        await self._answer()
        if self.lease is None:
            raise NotFound(name)
        return copy.deepcopy(self.lease)

    async def create(self, _: Resource, manifest: dict[str, Any]) -> dict[str, Any]:
        await self._answer()
        if self.lease is not None:
            raise AlreadyExists("op")
        return self._store(manifest)

    async def replace(self, _: Resource, manifest: dict[str, Any]) -> dict[str, Any]:
        await self._answer()
        if self.lease is None:
            raise NotFound("op")
        if manifest["metadata"]["resourceVersion"] != self.lease["metadata"]["resourceVersion"]:
            raise Conflict("op")
        stored = self._store(manifest)
        if self.deaf:
            raise Unavailable("the answer was lost")
        return stored

    @property
    def holder(self) -> str:
        return str((self.lease or {"spec": {}})["spec"].get("holderIdentity", ""))

    def _store(self, manifest: dict[str, Any]) -> dict[str, Any]:
        self.version += 1
        self.lease = copy.deepcopy(manifest)
        self.lease["metadata"]["resourceVersion"] = str(self.version)
        return copy.deepcopy(self.lease)

    async def _answer(self) -> None:
        if self.hangs:
            await asyncio.Event().wait()
        if self.down:
            raise Unavailable("down")


def candidates(server: Any, count: int) -> list[Leader]:
    ticks: Iterator[int] = iter(range(10**9))

    def moment() -> Any:
        return NOW.replace(microsecond=next(ticks) % 10**6)

    def clock() -> float:
        return asyncio.get_running_loop().time()

    return [Leader(server, ELECTION, f"op-{number}", clock, moment) for number in range(count)]


def test_the_first_one_gets_it_and_the_second_waits_for_its_end() -> None:
    async def story() -> tuple[float, int]:
        server = Server()
        first, second = candidates(server, 2)
        await first.acquire()
        assert server.holder == "op-0"
        holding = asyncio.create_task(first.hold())
        waiting = asyncio.create_task(second.acquire())
        await asyncio.sleep(1.5)
        assert not waiting.done(), "a lease that is renewed is never taken"
        holding.cancel()
        started = asyncio.get_running_loop().time()
        await waiting
        assert server.holder == "op-1"
        return asyncio.get_running_loop().time() - started, server.lease["spec"]["leaseTransitions"]

    waited, transitions = run(story())
    assert 0.8 < waited < 2.0
    assert transitions == 2


def test_a_lease_given_back_is_taken_at_once() -> None:
    async def story() -> float:
        server = Server()
        first, second = candidates(server, 2)
        await first.acquire()
        await first.release()
        started = asyncio.get_running_loop().time()
        await second.acquire()
        return asyncio.get_running_loop().time() - started

    assert run(story()) < 0.3


@pytest.mark.parametrize("fault", ["down", "hangs"])
def test_who_cannot_renew_ends_before_another_may_begin(fault) -> None:
    async def story() -> float:
        server = Server()
        (leader,) = candidates(server, 1)
        await leader.acquire()
        started = asyncio.get_running_loop().time()
        setattr(server, fault, True)
        with pytest.raises(LeaseLost):
            await leader.hold()
        return asyncio.get_running_loop().time() - started

    assert run(story()) < ELECTION.lease_duration_seconds


def test_who_was_away_too_long_ends_at_once_and_takes_nothing_back() -> None:
    async def story() -> None:
        server = Server()
        first, second = candidates(server, 2)
        await first.acquire()
        await second.acquire()
        version = server.version
        with pytest.raises(LeaseLost):
            await first.hold()
        assert (server.holder, server.version) == ("op-1", version)

    run(story())


def test_a_lost_answer_costs_nothing() -> None:
    async def story() -> None:
        server = Server()
        (leader,) = candidates(server, 1)
        await leader.acquire()
        server.deaf = True
        holding = asyncio.create_task(leader.hold())
        await asyncio.sleep(0.15)
        server.deaf = False
        await asyncio.sleep(1.0)
        assert not holding.done()
        holding.cancel()

    run(story())


def test_who_has_taken_the_lease_without_being_told_does_not_wait_for_its_own_end() -> None:
    async def story() -> float:
        server = Server()
        before, after = candidates(server, 2)
        await before.acquire()
        await before.release()
        server.deaf = True
        started = asyncio.get_running_loop().time()
        acquiring = asyncio.create_task(after.acquire())
        await asyncio.sleep(0.05)
        assert (server.holder, acquiring.done()) == ("op-1", False)
        server.deaf = False
        await acquiring
        return asyncio.get_running_loop().time() - started

    assert run(story()) < 0.3


def test_a_lease_taken_by_another_or_removed_is_lost() -> None:
    async def story(change: dict[str, Any] | None) -> None:
        server = Server()
        (leader,) = candidates(server, 1)
        await leader.acquire()
        taken = await server.get(None, "system", "op")  # type: ignore[arg-type]
        taken["spec"]["holderIdentity"] = "another"
        await server.replace(None, taken)  # type: ignore[arg-type]
        if change is None:
            server.lease = None
        with pytest.raises(LeaseLost):
            async with asyncio.timeout(2):
                await leader.hold()

    run(story({}))
    run(story(None))


def test_of_many_candidates_one_wins() -> None:
    async def story() -> int:
        server = Server()
        async with asyncio.timeout(5):
            tasks = [asyncio.create_task(each.acquire()) for each in candidates(server, 8)]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.sleep(0.3)
        done = sum(task.done() for task in tasks)
        for task in tasks:
            task.cancel()
        return done

    assert run(story()) == 1


@pytest.mark.parametrize("times", [(1.0, 1.0, 0.5), (1.0, 2.0, 0.5), (2.0, 1.0, 1.0)])
def test_times_that_let_two_work_are_refused(times) -> None:
    duration, deadline, retry = times
    with pytest.raises(ValueError, match="must be above"):
        LeaderElection(
            namespace="a",
            name="b",
            lease_duration_seconds=duration,
            renew_deadline_seconds=deadline,
            retry_period_seconds=retry,
        )
