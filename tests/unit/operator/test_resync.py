"""What a resync finds that the watch has missed, and what it does not take for that."""

from __future__ import annotations

import asyncio
from typing import Any

from builders import job_manifest
from watched import FINAL, STARTED, resyncing, tell


def test_a_resync_wakes_unfinished_jobs_and_forgets_what_is_gone():
    resync, watch, queue, listing, _ = resyncing()
    for name, uid, status in (("runs", "1", STARTED), ("over", "2", FINAL), ("ghost", "3", STARTED)):
        tell(watch, job_manifest(name, uid=uid, status=status))
        if name != "ghost":
            listing.items.append(job_manifest(name, uid=uid))
    queue.taken()
    asyncio.run(resync.once())
    assert queue.taken() == ["runs"]
    assert ("team", "ghost") not in watch.roster.versions()
    assert resync.longest_difference() == 0.0


def test_a_job_that_the_watch_never_told_of_is_looked_at_and_makes_the_operator_unhealthy():
    resync, watch, queue, listing, clock = resyncing()
    listing.items.append(job_manifest("missed"))
    for seconds in (0.0, 60.0, 121.0):
        clock.now = seconds
        asyncio.run(resync.once())
        assert queue.taken() == ["missed"]
    assert resync.longest_difference() == 121.0
    tell(watch, job_manifest("missed"))
    asyncio.run(resync.once())
    assert resync.longest_difference() == 0.0


def test_a_busy_job_that_the_watch_tells_of_late_is_no_difference_that_stays():
    resync, watch, _, listing, clock = resyncing()
    for turn in range(5):
        clock.now = 60.0 * turn
        tell(watch, job_manifest(), version=str(2 * turn))
        listing.items = [job_manifest()]
        listing.items[0]["metadata"]["resourceVersion"] = str(2 * turn + 1)
        asyncio.run(resync.once())
        assert resync.longest_difference() == 0.0


def test_what_the_watch_tells_while_the_list_is_read_is_no_difference():
    """The list may be the older of the two: should no other be answered, nothing must look missed."""
    resync, watch, _, listing, clock = resyncing()
    tell(watch, job_manifest(), version="1")

    async def read_before_the_change(*_: Any, **__: Any) -> list[dict[str, Any]]:
        changed = job_manifest()
        changed["metadata"]["resourceVersion"] = "2"
        await watch.job_event(event={"type": "MODIFIED", "object": changed})
        return [job_manifest()]

    cluster: Any = listing
    cluster.list = read_before_the_change
    asyncio.run(resync.once())
    clock.now = 200.0
    assert resync.longest_difference() == 0.0


def test_a_difference_that_the_watch_has_told_of_ends_though_no_list_is_answered():
    resync, watch, _, listing, clock = resyncing()
    listing.items.append(job_manifest("missed"))
    asyncio.run(resync.once())
    clock.now = 200.0
    assert resync.longest_difference() == 200.0
    tell(watch, job_manifest("missed"))
    assert resync.longest_difference() == 0.0


def test_a_job_made_while_the_list_is_read_is_not_forgotten():
    resync, watch, _, listing, _ = resyncing()

    async def made_meanwhile(*_: Any, **__: Any) -> list[dict[str, Any]]:
        manifest = job_manifest("young")
        manifest["metadata"]["resourceVersion"] = "9"
        await watch.job_event(event={"type": "ADDED", "object": manifest})
        return []

    cluster: Any = listing
    cluster.list = made_meanwhile
    asyncio.run(resync.once())
    assert ("team", "young") in watch.roster.versions()


def test_an_api_server_that_is_down_does_not_end_the_resync():
    async def story() -> None:
        resync, _, queue, listing, _ = resyncing()
        listing.items, listing.down = [job_manifest("missed")], True
        task = asyncio.create_task(resync.run())
        await asyncio.sleep(0.7)
        assert queue.taken() == []
        listing.down = False
        async with asyncio.timeout(5):
            while not queue.added:
                await asyncio.sleep(0.01)
        task.cancel()

    asyncio.run(story())
