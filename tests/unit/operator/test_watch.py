"""Whom an event of the watch wakes, and what of it is kept."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

from builders import NOW_TEXT, job_manifest
from finetune_api import names
from finetune_operator import handlers
from finetune_operator.client import Credentials
from finetune_operator.handlers import Watch
from finetune_operator.observe import Departed
from finetune_operator.roster import Roster
from watched import FINAL, STARTED, Recorder, tell, watching


def child(kind: str, **metadata: Any) -> dict[str, Any]:
    labels = {names.JOB_NAME_LABEL: "tune", names.JOB_UID_LABEL: "u", names.STAGE_LABEL: "train"}
    owner = {"kind": "Job", "name": "tune-train", "uid": "uid-of-train", "controller": True}
    own = {"uid": "c", "labels": labels, "ownerReferences": [owner], "creationTimestamp": NOW_TEXT}
    return {"kind": kind, "metadata": {"namespace": "team", "name": "c", **own, **metadata}}


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


def test_a_job_that_has_been_over_for_long_is_not_looked_at_when_the_operator_starts():
    watch, queue = watching()
    told = {**FINAL, "observedGeneration": 1}
    for name, fields, generation in (
        ("settled", {}, 1),
        ("goes-in-time", {"ttlSecondsAfterFinished": 60}, 1),
        ("changed-meanwhile", {"cancel": True}, 2),
    ):
        manifest = job_manifest(name, uid=name, status=told, **fields)
        manifest["metadata"]["generation"] = generation
        tell(watch, manifest, None)
    assert queue.taken() == ["goes-in-time", "changed-meanwhile"]
    later = job_manifest("settled", uid="settled", status=told, ttlSecondsAfterFinished=60)
    later["metadata"]["generation"] = 2
    tell(watch, later, version="2")
    assert queue.taken() == ["settled"]


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
    assert [pod.name for pod in watch.departed.of("u", "train")] == ["c"]
    assert watch.departed.of("u", "prepare") == []


def test_a_child_that_a_list_tells_of_has_time():
    """A server that refuses watches for a while has them listed again and again."""
    watch, queue = watching()
    for kind in ("Job", "Pod"):
        asyncio.run(watch.child_event(event={"type": None, "object": child(kind)}))
    assert (queue.taken(), len(queue.later)) == ([], 2)
    asyncio.run(watch.child_event(event={"type": "ADDED", "object": child("Pod")}))
    assert queue.taken() == ["tune"], "news is told of at once"


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
    assert (len(kept), kept[-1].uid) == (1024, "2999")
