"""Whom an event wakes, what a resync finds, and when the operator calls itself unhealthy."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import aiohttp

from builders import job_manifest
from finetune_api import names
from finetune_operator import handlers
from finetune_operator.client import Credentials, Unavailable
from finetune_operator.handlers import Watch, missing_watches
from finetune_operator.health import Health, serve
from finetune_operator.observe import Departed
from finetune_operator.queue import Key, WorkQueue
from finetune_operator.resync import Resync
from finetune_operator.roster import Roster
from finetune_operator.settings import Settings

STARTED = {"startTime": "2026-01-01T00:00:00Z"}
FINAL = {
    **STARTED,
    "conditions": [
        {
            "type": "Failed",
            "status": "True",
            "reason": "x",
            "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }
    ],
}


class Recorder(WorkQueue):
    """A queue that tells what was added."""

    def __init__(self) -> None:
        super().__init__(lambda: 0.0)
        self.added: list[Key] = []

    async def add(self, key: Key) -> None:
        self.added.append(key)

    async def add_after(self, key: Key, seconds: float) -> None:
        assert seconds < 1, "a pod that begins or ends is told of at once"
        self.added.append(key)

    def taken(self) -> list[str]:
        """Names added since the last time."""
        added, self.added = self.added, []
        return [name for _, name in added]


def watching() -> tuple[Watch, Recorder]:
    queue = Recorder()
    cluster: Any = None
    return Watch(cluster, queue, Roster(), Departed()), queue


def tell(watch: Watch, manifest: dict[str, Any], kind: str | None = "MODIFIED", version: str = "1") -> None:
    manifest["metadata"]["resourceVersion"] = version
    asyncio.run(watch.job_event(event={"type": kind, "object": manifest}))


def child(kind: str, **metadata: Any) -> dict[str, Any]:
    labels = {names.JOB_NAME_LABEL: "tune", names.JOB_UID_LABEL: "u", names.STAGE_LABEL: "train"}
    return {"kind": kind, "metadata": {"namespace": "team", "name": "c", "uid": "c", "labels": labels, **metadata}}


def test_a_job_that_an_event_tells_of_is_kept_for_its_first_look_alone():
    watch, _ = watching()
    new = job_manifest()
    key = (new["metadata"]["namespace"], "tune")
    tell(watch, new, None)
    assert watch.roster.take(key) is None, "a list that begins a watch may be long"
    watch, _ = watching()
    tell(watch, new, "ADDED")
    assert watch.roster.take(key) == new
    assert watch.roster.take(key) is None
    changed = job_manifest()
    changed["metadata"]["generation"] = 2
    tell(watch, changed, version="2")
    tell(watch, job_manifest(status=STARTED), version="3")
    assert watch.roster.take(key) is None, "it has started: it is read as it is then"
    tell(watch, changed, version="4")
    tell(watch, changed, "DELETED")
    assert watch.roster.take(key) is None


def test_a_new_job_and_a_changed_spec_wake_it_but_its_own_status_does_not():
    watch, queue = watching()
    tell(watch, job_manifest(), None)
    assert queue.taken() == ["tune"]
    tell(watch, job_manifest(status=STARTED), version="2")
    assert queue.taken() == []
    changed = job_manifest(status=STARTED)
    changed["metadata"]["generation"] = 2
    tell(watch, changed, version="3")
    assert queue.taken() == ["tune"]
    changed["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    tell(watch, changed, version="4")
    assert queue.taken() == ["tune"]
    tell(watch, changed, "DELETED")
    assert queue.taken() == ["tune"]
    assert watch.roster.versions() == {}


def test_the_end_of_a_job_that_is_told_late_is_not_that_of_its_successor():
    """kopf tells of each object in its order, but of two objects, though of one name, in any."""
    watch, _ = watching()
    tell(watch, job_manifest(uid="second"), "ADDED", version="2")
    tell(watch, job_manifest(uid="first"), "DELETED")
    assert watch.roster.versions() == {("team", "tune"): ("second", "2")}


def test_a_queue_given_or_taken_away_wakes_a_job_and_other_labels_do_not():
    watch, queue = watching()
    tell(watch, job_manifest())
    queue.taken()
    for labels, woken in (
        ({names.QUEUE_LABEL: "a"}, ["tune"]),
        ({names.QUEUE_LABEL: "a", "b": "c"}, []),
        ({}, ["tune"]),
    ):
        changed = job_manifest()
        changed["metadata"]["labels"] = labels
        tell(watch, changed)
        assert queue.taken() == woken


def test_a_job_applied_again_is_new_even_if_its_generation_is_the_same():
    watch, queue = watching()
    tell(watch, job_manifest())
    tell(watch, job_manifest(uid="another"))
    assert queue.taken() == ["tune", "tune"]


def test_a_runtime_wakes_the_jobs_that_have_not_started():
    watch, queue = watching()
    tell(watch, job_manifest("waits", uid="1"))
    tell(watch, job_manifest("runs", uid="2", status=STARTED))
    tell(watch, job_manifest("over", uid="3", status=FINAL))
    queue.taken()
    asyncio.run(watch.runtime_event(event={}))
    assert queue.taken() == ["waits"]


def test_any_change_of_a_parent_wakes_those_that_wait_for_its_checkpoints():
    watch, queue = watching()
    tell(watch, job_manifest("parent", uid="1", status=STARTED))
    tell(watch, job_manifest("waits", uid="2", model=None, fromCheckpoint="parent:10"))
    tell(watch, job_manifest("runs", uid="3", model=None, fromCheckpoint="parent", status=STARTED))
    tell(watch, job_manifest("other", uid="4", model=None, fromCheckpoint="parents"))
    queue.taken()
    tell(watch, job_manifest("parent", uid="1", status=FINAL), version="2")
    assert queue.taken() == ["waits"]


def test_a_child_wakes_its_job_and_a_deleted_pods_last_event_is_kept():
    watch, queue = watching()
    asyncio.run(watch.child_event(event={"type": "MODIFIED", "object": child("Job")}))
    asyncio.run(watch.child_event(event={"type": "MODIFIED", "object": child("Pod")}))
    assert watch.departed.of("u", "train") == []
    asyncio.run(watch.child_event(event={"type": "DELETED", "object": child("Pod")}))
    asyncio.run(watch.child_event(event={"type": "DELETED", "object": child("Pod", uid="d", labels={})}))
    assert queue.taken() == ["tune"] * 3
    assert [p["metadata"]["name"] for p in watch.departed.of("u", "train")] == ["c"]
    assert watch.departed.of("u", "prepare") == []


def test_a_token_that_was_refused_may_be_shown_again_after_a_pause(monkeypatch):
    """kopf takes no credentials twice, and its watchers end where there are no others."""
    monkeypatch.setattr(handlers, "LOGIN_PAUSE_SECONDS", 0.05)

    class Known:
        async def credentials(self) -> Credentials:
            return Credentials("https://server", "Bearer t0ken", None, None, None, verify=True)

    async def story() -> None:
        cluster: Any = Known()
        watch = Watch(cluster, Recorder(), Roster(), Departed())
        loop = asyncio.get_running_loop()
        first, begun = await watch.login(), loop.time()
        second = await watch.login()
        assert loop.time() - begun >= 0.04
        assert (first.scheme, first.token) == (second.scheme, second.token) == ("Bearer", "t0ken")
        assert first != second

    asyncio.run(story())


def test_a_request_of_a_watcher_is_repeated_without_end_and_never_without_a_pause():
    waits = list(itertools.islice(handlers.Backoffs(), 1000))
    assert min(waits) >= 1
    assert max(waits) <= 30


def test_only_the_newest_deleted_pods_are_kept():
    departed = Departed()
    for number in range(3000):
        departed.remember(child("Pod", uid=str(number)))
    kept = departed.of("u", "train")
    assert (len(kept), kept[-1]["metadata"]["uid"]) == (1024, "2999")


class Listing:
    """A cluster of which only the list of jobs matters."""

    def __init__(self) -> None:
        self.items: list[dict[str, Any]] = []
        self.down = False

    async def list(self, *_: Any, **__: Any) -> list[dict[str, Any]]:
        if self.down:
            raise Unavailable("down")
        return self.items


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def resyncing() -> tuple[Resync, Watch, Recorder, Listing, Clock]:
    watch, queue = watching()
    listing, clock = Listing(), Clock()
    cluster: Any = listing
    settings = Settings(resync_period_seconds=0.5)
    return Resync(cluster, queue, watch.roster, settings, clock), watch, queue, listing, clock


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
