"""The operator may die at any write, and the job ends the same: the same facts, no child made twice."""

from __future__ import annotations

import asyncio
import copy
from dataclasses import replace
from typing import Any, cast

import pytest

from builders import JOB_UID, job_manifest
from deaths import KEY, LOOKS, Death, facts, fresh_world, live, operator, reconciler, status_of
from finetune_api.status import JobStatus, Phase
from finetune_api.trainer import Stage
from finetune_operator.client import FINETUNE_JOBS, Refused, Unavailable
from finetune_operator.queue import RetryLater
from finetune_operator.reconcile import Reconciler
from finetune_operator.settings import NetworkPolicySettings, Settings
from simulated import SimulatedCluster, World

SCRIPTS = {
    "all goes well": ({Stage.PREPARE: [0], Stage.TRAIN: [0]}, "Succeeded"),
    "two failures, then success": ({Stage.PREPARE: [20, 0], Stage.TRAIN: [1, 0]}, "Succeeded"),
    "stopped from outside twice": ({Stage.PREPARE: [3, 0], Stage.TRAIN: [3, 3, 0]}, "Succeeded"),
    "bad rows": ({Stage.PREPARE: [11], Stage.TRAIN: []}, "DataInvalid"),
    "retries exhausted": ({Stage.PREPARE: [0], Stage.TRAIN: [1, 1, 22]}, "PublishFailed"),
    "diverged": ({Stage.PREPARE: [0], Stage.TRAIN: [15]}, "Diverged"),
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_death_at_any_write_changes_nothing_in_the_result(name):
    script, reason = SCRIPTS[name]
    undisturbed = Death(at=0, after=False)
    world = fresh_world(script, backoffLimit=2)
    expected = live(world, undisturbed)
    assert reason in [c.reason for c in expected.conditions]
    assert undisturbed.writes > 5
    for at in range(1, undisturbed.writes + 1):
        for after in (False, True):
            death = Death(at, after)
            again = fresh_world(script, backoffLimit=2)
            assert facts(live(again, death)) == facts(expected), f"died at write {at}, after={after}"
            assert again.created == world.created
            assert again.most_pods_at_once == 1
    assert world.created in (["tune-prepare"], ["tune-prepare", "tune-train"])


@pytest.mark.parametrize("turn", range(2, 9))
def test_a_cancel_at_any_time_ends_the_job_with_no_pod_left(turn):
    def cancel(world: World, now: int) -> None:
        if now == turn:
            stored = world.objects[(FINETUNE_JOBS.plural, *KEY)]
            stored["spec"]["cancel"] = True
            world.touch(stored)

    script = {Stage.PREPARE: [20, 0], Stage.TRAIN: [1, 1, 0]}
    baseline = Death(at=0, after=False)
    reference = fresh_world(script)
    live(reference, baseline, cancel)
    for at in range(1, baseline.writes + 1):
        world = fresh_world(script)
        status = live(world, Death(at, after=True), cancel)
        ends = {c.type: c.reason for c in status.conditions if c.type in ("Complete", "Failed")}
        assert len(ends) == 1
        assert ends.get("Failed", "Cancelled") == "Cancelled"
        running = [p for p in world.of("pods") if p["status"]["phase"] in ("Pending", "Running")]
        assert running == []
        assert len(set(world.created)) == len(world.created)


@pytest.mark.parametrize("turn", range(4))
def test_suspended_and_resumed_at_any_time_it_ends_as_if_it_never_was(turn):
    """The pod that our stop ends may be killed: no retry is allowed, so a single one that counts would end the job."""

    def suspend(world: World, now: int) -> None:
        stored = world.objects[(FINETUNE_JOBS.plural, *KEY)]
        stored["spec"]["suspend"] = turn <= now < turn + 4
        world.touch(stored)

    def life(death: Death) -> tuple[World, JobStatus]:
        world = fresh_world({Stage.PREPARE: [0, 0], Stage.TRAIN: [0, 0]}, backoffLimit=0)
        world.stopped_with = 137
        return world, live(world, death, suspend)

    undisturbed = Death(at=0, after=False)
    _, expected = life(undisturbed)
    assert expected.condition("Suspended").reason == "Resumed"
    for at in range(1, undisturbed.writes + 1):
        for after in (False, True):
            world, status = life(Death(at, after))
            ends = {c.type: c.reason for c in status.conditions if c.type in ("Complete", "Failed")}
            assert ends == {"Complete": "Succeeded"}, f"died at write {at}, after={after}"
            assert (status.restarts, status.disruptions, world.most_pods_at_once) == (0, 0, 1)
            assert world.created == ["tune-prepare", "tune-train"]


@pytest.mark.parametrize("turn", range(3, 9))
def test_a_child_deleted_at_any_time_is_made_again_and_two_pods_never_run(turn):
    def delete(world: World, now: int) -> None:
        if now == turn:
            for name in ("tune-prepare", "tune-train"):
                world.delete_job(name)

    world = fresh_world({Stage.PREPARE: [0, 0, 0], Stage.TRAIN: [0, 0, 0]})
    status = live(world, Death(at=0, after=False), delete)
    assert "Succeeded" in [c.reason for c in status.conditions]
    assert world.most_pods_at_once == 1


def test_a_job_applied_again_under_the_same_name_starts_afresh():
    world = fresh_world({Stage.PREPARE: [0, 0], Stage.TRAIN: [0, 0]})
    death = Death(at=0, after=False)
    first = live(world, death)
    world.add(FINETUNE_JOBS, job_manifest(uid="another-uid-0000", hyperparameters={"learningRate": 0.001}))
    asyncio.run(operator(world, death).look(KEY))
    asyncio.run(operator(world, death).look(KEY))
    waiting = status_of(world)
    assert "waits until an earlier Job" in waiting.condition("DataReady").message
    for name in ("tune-prepare", "tune-train"):
        world.delete_job(name)
    second = live(world, death)
    assert world.created == ["tune-prepare", "tune-train"] * 2
    assert second.output_name != first.output_name
    labels = {p["metadata"]["labels"]["finetune.dev/job-uid"] for p in world.of("pods")}
    assert labels == {"another-uid-0000"}


def test_a_status_is_not_written_over_a_change_that_was_not_read():
    world = fresh_world({Stage.PREPARE: [0], Stage.TRAIN: [0]})
    stored = world.objects[(FINETUNE_JOBS.plural, *KEY)]

    def change_meanwhile() -> None:
        stored["spec"]["trainingFile"] = "pvc://elsewhere/t.jsonl"
        world.touch(stored)

    cluster: Any = SimulatedCluster(world, change_meanwhile, lambda: None)
    with pytest.raises(RetryLater):
        asyncio.run(reconciler(world, cluster).look(KEY))
    assert "status" not in stored


def test_a_watch_that_is_behind_starts_nothing():
    world = fresh_world({Stage.PREPARE: [0], Stage.TRAIN: [0]})
    stored = world.objects[(FINETUNE_JOBS.plural, *KEY)]
    told = [copy.deepcopy(stored)]
    stored["spec"]["cancel"] = True
    world.touch(stored)
    reconciler = replace(operator(world, Death(at=0, after=False)), news=lambda _: told.pop() if told else None)
    with pytest.raises(RetryLater):
        asyncio.run(reconciler.look(KEY))
    assert "status" not in stored
    asyncio.run(reconciler.look(KEY))
    assert [c["reason"] for c in stored["status"]["conditions"] if c["type"] == "Failed"] == ["Cancelled"]
    assert world.created == []


def test_an_invalid_stored_job_is_told_and_makes_no_loop():
    world = fresh_world({})
    stored = world.objects[(FINETUNE_JOBS.plural, *KEY)]
    stored["spec"]["fromCheckpoint"] = "other"
    death = Death(at=0, after=False)
    assert asyncio.run(operator(world, death).look(KEY)) is None
    condition = stored["status"]["conditions"][0]
    assert (condition["type"], condition["status"], condition["reason"]) == ("Accepted", "False", "InvalidSpec")
    assert "either a model or a checkpoint to start from, not both" in condition["message"]
    writes = death.writes
    asyncio.run(operator(world, death).look(KEY))
    assert death.writes == writes


def test_an_invalid_stored_job_can_be_cancelled_before_it_starts():
    world = fresh_world({})
    stored = world.objects[(FINETUNE_JOBS.plural, *KEY)]
    stored["spec"] |= {"fromCheckpoint": "other", "cancel": True, "ttlSecondsAfterFinished": 60}
    assert asyncio.run(operator(world, Death(at=0, after=False)).look(KEY)) == 60, "then its record goes"
    assert status_of(world).phase is Phase.CANCELLED


def test_a_job_that_has_become_invalid_says_so_and_can_be_cancelled_while_it_runs():
    told: list[str] = []

    def spoil(world: World, now: int) -> None:
        stored = world.objects[(FINETUNE_JOBS.plural, *KEY)]
        if now == 6:
            stored["spec"]["fromCheckpoint"] = "other"
        if now == 9:
            told.append(status_of(world).condition("Accepted").message)
            stored["spec"]["cancel"] = True
        world.touch(stored)

    world = fresh_world({Stage.PREPARE: [0], Stage.TRAIN: [3] * 20}, backoffLimit=20)
    status = live(world, Death(at=0, after=False), spoil)
    assert "set spec.cancel to true" in told[0]
    assert status.phase is Phase.CANCELLED
    assert all(pod["status"]["phase"] == "Failed" for pod in world.of("pods")[1:]), "no pod is left"


def test_a_stop_that_the_api_server_refuses_is_said_and_asked_for_again(monkeypatch):
    """A policy of the cluster may have changed since the Job was made, and refuse each change of it from then on."""
    world = fresh_world({Stage.PREPARE: [0], Stage.TRAIN: [3]})
    reconciler, _ = counted(world)

    async def refuse(*_: Any, **__: Any) -> None:
        raise Refused("admission webhook denied the request")

    asyncio.run(reconciler.look(KEY))
    world.step()
    stored = world.objects[(FINETUNE_JOBS.plural, *KEY)]
    stored["spec"]["cancel"] = True
    world.touch(stored)
    with monkeypatch.context() as patch:
        patch.setattr(CountedCluster, "hold", refuse)
        assert asyncio.run(reconciler.look(KEY)) == Settings().poll_period_seconds
    told = status_of(world).condition("DataReady").message
    assert told.endswith("the API server refused Job tune-prepare: admission webhook denied the request")
    while not status_of(world).is_final:
        asyncio.run(reconciler.look(KEY))
        world.step()
    assert status_of(world).phase is Phase.CANCELLED


def test_a_job_that_is_gone_is_forgotten():
    world = World({})
    assert asyncio.run(operator(world, Death(at=0, after=False)).look(KEY)) is None


@pytest.mark.parametrize(
    ("error", "after"), [(Unavailable("down", 7.0), 7.0), (Unavailable("down"), None), (Refused("status"), None)]
)
def test_an_api_server_that_does_not_answer_makes_the_look_come_later(error, after):
    def fail() -> None:
        raise error

    world = fresh_world({})
    cluster: Any = SimulatedCluster(world, fail, lambda: None)
    with pytest.raises(RetryLater) as raised:
        asyncio.run(reconciler(world, cluster).look(KEY))
    assert raised.value.after == after


def test_the_private_state_is_the_uids():
    world = fresh_world({Stage.PREPARE: [0], Stage.TRAIN: [0]})
    live(world, Death(at=0, after=False))
    (train,) = [j for j in world.of("jobs") if j["metadata"]["name"] == "tune-train"]
    config = train["spec"]["template"]["metadata"]["annotations"]["finetune.dev/trainer-config"]
    assert f'"uid":"{JOB_UID}"' in config


NEWER = {"phase": "FromTheFuture"}, {"aFieldOfTomorrow": 1}, {"resolved": {"runtime": {"name": "gpu", "generation": 3}}}


@pytest.mark.parametrize("beside", NEWER)
def test_a_status_of_another_version_is_left_as_it_is(beside):
    world = fresh_world({})
    stored = world.objects[(FINETUNE_JOBS.plural, *KEY)]
    frozen = {"runtime": {"name": "gpu", "generation": 3, "spec": {"image": "trainer:1", "aFieldOfTomorrow": 1}}}
    complete = {
        "type": "Complete",
        "status": "True",
        "reason": "Succeeded",
        "message": "",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }
    final = {"startTime": "2026-01-01T00:00:00Z", "conditions": [complete], **beside}
    for status in (final, {"startTime": "2026-01-01T00:00:00Z", "resolved": frozen}):
        stored["status"] = copy.deepcopy(status)
        death = Death(at=0, after=False)
        assert asyncio.run(operator(world, death).look(KEY)) is None
        assert (death.writes, stored["status"]) == (0, status)


def test_a_started_job_whose_spec_is_refused_by_this_version_keeps_its_other_conditions():
    world = fresh_world({Stage.PREPARE: [0], Stage.TRAIN: [0]})
    stored = world.objects[(FINETUNE_JOBS.plural, *KEY)]
    death = Death(at=0, after=False)
    asyncio.run(operator(world, death).look(KEY))
    before = {c.type: c.message for c in status_of(world).conditions}
    stored["spec"]["aFieldOfTomorrow"] = 1
    asyncio.run(operator(world, death).look(KEY))
    told = {c["type"]: c["message"] for c in stored["status"]["conditions"]}
    assert "aFieldOfTomorrow" in told.pop("Accepted")
    assert told == {kind: words for kind, words in before.items() if kind != "Accepted"}


class CountedCluster(SimulatedCluster):
    """Notes each request in its order."""

    def __init__(self, world: World) -> None:
        super().__init__(world, lambda: None, lambda: None)
        self.asked: list[str] = []

    async def get(self, resource: Any, namespace: str | None, name: str) -> dict[str, Any]:
        self.asked.append(f"GET {resource.plural}")
        return await super().get(resource, namespace, name)

    async def list(self, resource: Any, *args: Any, **more: Any) -> list[dict[str, Any]]:
        self.asked.append(f"LIST {resource.plural}")
        return await super().list(resource, *args, **more)

    async def create(self, resource: Any, manifest: dict[str, Any]) -> dict[str, Any]:
        self.asked.append(f"POST {resource.plural}")
        return await super().create(resource, manifest)

    async def apply_status(self, resource: Any, manifest: dict[str, Any]) -> dict[str, Any]:
        self.asked.append("PATCH status")
        return await super().apply_status(resource, manifest)


def counted(world: World) -> tuple[Reconciler, list[str]]:
    cluster = CountedCluster(world)
    return reconciler(world, cast(Any, cluster)), cluster.asked


def test_a_job_starts_with_few_requests():
    """One read of the job and of what it names, then three writes; the first child is looked for by nobody."""
    world = fresh_world({Stage.PREPARE: [0], Stage.TRAIN: [0]})
    reconciler, asked = counted(world)
    asyncio.run(reconciler.look(KEY))
    references = ["LIST finetuneruntimes", *["GET persistentvolumeclaims"] * 2, "GET serviceaccounts"]
    begins = ["PATCH status", *(f"POST {plural}" for plural in made(world)), "PATCH status"]
    assert asked == ["GET finetunejobs", *references, *begins]
    while not status_of(world).is_true("DataReady"):
        world.step()
        asked.clear()
        asyncio.run(reconciler.look(KEY))
    assert asked[:3] == ["GET finetunejobs", "GET jobs", "LIST pods"]
    assert asked[3] == asked[-1] == "PATCH status"
    assert not [request for request in asked[4:-1] if not request.startswith("POST ")]


def test_a_training_begins_in_one_look_with_what_stands_beside_both_stages():
    world = fresh_world({Stage.PREPARE: [0], Stage.TRAIN: [0]})
    plain, asked = counted(world)
    reconciler = replace(plain, settings=Settings(network_policy=NetworkPolicySettings(enabled=True)))
    asyncio.run(reconciler.look(KEY))
    while not status_of(world).is_true("DataReady"):
        world.step()
        asked.clear()
        asyncio.run(reconciler.look(KEY))
    assert [request for request in asked if request.startswith("POST ")] == ["POST jobs"]
    assert world.created == ["tune-prepare", "tune-train"]


def test_a_claim_that_is_there_is_not_made_by_its_template():
    world = fresh_world({Stage.PREPARE: [0], Stage.TRAIN: [0]})
    (runtime,) = world.of("finetuneruntimes")
    template = {"spec": {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}}
    runtime["spec"]["claimTemplate"] = template
    plain, asked = counted(world)
    asyncio.run(replace(plain, settings=Settings(create_claims=True)).look(KEY))
    assert [request for request in asked if request.startswith("POST ")] == ["POST jobs"]


def made(world: World) -> list[str]:
    """Kinds of the children, in the order of their making."""
    first = ("finetunejobs", "finetuneruntimes", "persistentvolumeclaims", "serviceaccounts")
    return [kind for kind, *_ in world.objects if kind not in first]


def test_nothing_is_written_when_nothing_has_changed():
    world = fresh_world({Stage.PREPARE: [0], Stage.TRAIN: [0]})
    reconciler, asked = counted(world)
    quiet = 0
    for _ in range(LOOKS):
        asyncio.run(reconciler.look(KEY))
        while asyncio.run(reconciler.look(KEY)) == 0.0:
            pass
        asked.clear()
        asyncio.run(reconciler.look(KEY))
        assert [request for request in asked if request.startswith(("PATCH", "POST"))] == []
        quiet += 1
        if status_of(world).is_final:
            break
        world.step()
    assert status_of(world).is_final
    assert quiet > 4


def test_the_second_of_two_operators_makes_no_second_child():
    """Both read the job before either has started it; the one that comes too late writes nothing."""
    world = fresh_world({Stage.PREPARE: [0], Stage.TRAIN: [0]})
    (one, _), (other, _) = counted(world), counted(world)

    async def both() -> list[Any]:
        return list(await asyncio.gather(one.look(KEY), other.look(KEY), return_exceptions=True))

    ends = asyncio.run(both())
    assert [type(end) for end in ends if isinstance(end, BaseException)] == [RetryLater]
    assert world.created == ["tune-prepare"]
