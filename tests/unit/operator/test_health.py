"""When the operator calls itself unhealthy, and who is told."""

from __future__ import annotations

import asyncio

import aiohttp

from builders import job_manifest
from finetune_operator.handlers import missing_watches
from finetune_operator.health import Health, serve
from finetune_operator.queue import WorkQueue
from finetune_operator.resync import Resync
from watched import Clock, Listing, resyncing


def make_health(missing: list[str]) -> tuple[Health, WorkQueue, Resync, Listing, Clock]:
    resync, _, _, listing, clock = resyncing()
    queue = WorkQueue(clock)
    return Health(queue, resync, lambda: missing, 120.0, clock), queue, resync, listing, clock


def test_healthy_means_nothing_waits_too_long():
    health, queue, resync, listing, clock = make_health([])
    assert health.problems() == []
    asyncio.run(queue.add(("team", "tune")))
    listing.items.append(job_manifest("missed"))
    asyncio.run(resync.once())
    clock.now = 119.0
    assert health.problems() == []
    clock.now = 121.0
    assert health.problems() == ["a job has waited 121 s for a worker", "the watch has missed a change for 121 s"]


def test_a_watcher_that_stays_away_is_a_problem_and_one_that_comes_back_is_none():
    missing = ["pods"]
    health, _, _, _, clock = make_health(missing)
    assert health.problems() == []
    clock.now = 121.0
    assert health.problems() == ["pods is not watched"]
    missing.clear()
    assert health.problems() == []
    missing.append("pods")
    assert health.problems() == []


def test_every_watcher_that_is_not_there_is_named():
    async def story(running: list[str]) -> list[str]:
        tasks = [asyncio.create_task(asyncio.sleep(9), name=f"watcher for {name}") for name in running]
        await asyncio.sleep(0)
        found = missing_watches(("a", "b"))
        for task in tasks:
            task.cancel()
        return found

    whole = [
        f"{kind}@{ns}" for kind in ("finetunejobs.v1alpha1.finetune.dev", "jobs.v1.batch", "pods.v1") for ns in "ab"
    ]
    whole.append("finetuneruntimes.v1alpha1.finetune.dev@None")
    assert asyncio.run(story(whole)) == []
    assert asyncio.run(story([name for name in whole if name != "pods.v1@b"])) == ["pods in b"]
    assert asyncio.run(story(whole[:-1])) == ["finetuneruntimes"]


def test_the_kubelet_is_answered():
    async def story() -> None:
        missing: list[str] = []
        health, _, _, _, clock = make_health(missing)
        runner = await serve(health, 0)
        # Port 0 is another port for each address family.
        port = next(address[1] for address in runner.addresses if address[0] == "0.0.0.0")
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://127.0.0.1:{port}/healthz") as response:
                assert (response.status, await response.json()) == (200, {"healthy": True, "problems": []})
            missing.append("pods")
            health.problems()
            clock.now = 300.0
            async with session.get(f"http://127.0.0.1:{port}/healthz") as response:
                assert response.status == 503
            async with session.get(f"http://127.0.0.1:{port}/metrics") as response:
                assert "finetune_operator_queue_depth 0.0" in await response.text()
        await runner.cleanup()

    asyncio.run(story())
