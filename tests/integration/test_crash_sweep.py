"""The operator dies before and after each single call to the API server of a job's life, one run for each: the final
state is always the same, no Job is made twice, and nothing that a status has once said is ever lost."""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from typing import Any

import pytest
from kubernetes.aio import client as kubernetes_client
from kubernetes.aio import config as kubernetes_config

from apiserver import ControlPlane
from crash import Admin, Death, Life, Run, side_by_side
from finetune_api.trainer import Stage
from history import History, history
from manifests import job

KEPT_COUNTERS = ("restarts", "disruptions")
KEPT_FACTS = ("startTime", "completionTime", "id", "outputName")
MOST_ATTEMPTS = 5


async def cancels_while_it_trains(run: Run) -> None:
    """What a user may do in the middle."""
    if run.status().get("progress") and "cancel" not in run.done:
        run.done.add("cancel")
        await run.history.reached(run.name, await run.admin.spec(run.namespace, run.name, cancel=True))


async def suspends_and_resumes(run: Run) -> None:
    """The pods save and go; then the job goes on from there."""
    suspended = any((c["type"], c["status"]) == ("Suspended", "True") for c in run.status().get("conditions", ()))
    if run.status().get("progress") and "suspend" not in run.done:
        run.done.add("suspend")
        await run.history.reached(run.name, await run.admin.spec(run.namespace, run.name, suspend=True))
    elif suspended and "resume" not in run.done:
        run.done.add("resume")
        await run.history.reached(run.name, await run.admin.spec(run.namespace, run.name, suspend=False))


LIVES = {
    "well": Life(),
    "retried": Life({Stage.PREPARE: (20, 0), Stage.TRAIN: (1, 0)}),
    "diverged": Life({Stage.TRAIN: (15,)}),
    "cancelled": Life(user=cancels_while_it_trains, waits_for="nothing"),
    "suspended": Life(user=suspends_and_resumes, waits_for="resume"),
}
ENDS = {
    "well": "Succeeded",
    "retried": "Succeeded",
    "diverged": "Diverged",
    "cancelled": "Cancelled",
    "suspended": "Succeeded",
}


@pytest.mark.parametrize("life", LIVES)
def test_a_death_at_any_call_changes_nothing(life, quiet_plane, quiet_account, quiet_namespace, capsys) -> None:
    points = asyncio.run(sweep(life, quiet_plane, quiet_account, quiet_namespace))
    with capsys.disabled():
        print(f"\n{life}: {points} points", end=" ")
    assert points > 25


async def sweep(life: str, plane: ControlPlane, account: Any, namespace: str) -> int:
    """One run without a death, then one for each of its calls and either side of it. Returns how many."""
    configurations = [kubernetes_client.Configuration() for _ in range(2)]
    for configuration, path in zip(configurations, (account, plane.kubeconfig), strict=True):
        configuration.connection_pool_maxsize = 16
        await kubernetes_config.load_kube_config(str(path), client_configuration=configuration)
    operators, admins = (kubernetes_client.ApiClient(configuration) for configuration in configurations)
    try:
        async with history(plane, namespace) as past:

            def run(name: str, death: Death) -> Run:
                return Run(name, namespace, LIVES[life], death, operators, Admin(admins), past)

            whole = run(f"{life}-whole", Death())
            expected = normal(await whole.live(made(whole)), whole)
            assert ENDS[life] in json.dumps(expected["conditions"])
            calls = len(whole.death.calls)
            deaths = [Death(at, after=side) for at in range(1, calls + 1) for side in (False, True)]
            runs = [run(f"{life}-{'after' if d.after else 'before'}-{d.at}", d) for d in deaths]
            for each, final in zip(runs, await side_by_side([r.live(made(r)) for r in runs]), strict=True):
                where = f"died {'after' if each.death.after else 'before'} call {each.death.at} of {calls}"
                assert each.death.died, where
                assert normal(final, each) == expected, f"{where}: {whole.death.calls[each.death.at - 1]}"
                nothing_was_made_twice(past, each, whole)
                nothing_was_lost(past, each.name)
            return len(runs)
    finally:
        await operators.close()
        await admins.close()


def made(run: Run) -> dict[str, Any]:
    """The manifest of a run's job."""
    manifest = job(run.name, **run.life.spec)
    manifest["metadata"]["namespace"] = run.namespace
    return manifest


def normal(final: dict[str, Any], run: Run) -> dict[str, Any]:
    """The final status without what must differ: times, uids, the run's name, and the random part of pods' names."""
    told = {field: value for field, value in final["status"].items() if field != "activeSeconds"}
    uid, text = final["metadata"]["uid"], json.dumps(told, sort_keys=True)
    pods = [e.object["metadata"]["name"] for e in run.history.events[run.name] if (e.kind, e.type) == ("pods", "ADDED")]
    for number, pod in enumerate(pods):
        text = text.replace(pod, f"POD{number}")
    text = text.replace(uid, "UID").replace(uid[:8], "UID8").replace(run.name, "JOB")
    return dict(json.loads(re.sub(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", "TIME", text)))


def nothing_was_made_twice(past: History, run: Run, whole: Run) -> None:
    """Each Job and the NetworkPolicy once, as many pods as without a death, and never two of them at the same time."""

    def added(name: str, kind: str) -> Counter[str]:
        events = [e for e in past.events[name] if (e.kind, e.type) == (kind, "ADDED")]
        return Counter(e.object["metadata"]["labels"]["finetune.dev/stage"] for e in events)

    assert set(added(run.name, "jobs").values()) == {1}
    assert added(run.name, "jobs") == added(whole.name, "jobs")
    assert added(run.name, "pods") == added(whole.name, "pods")
    assert [e.type for e in past.events[run.name] if e.kind == "networkpolicies"] == ["ADDED"]
    alive: set[str] = set()
    for event in past.events[run.name]:
        if event.kind == "pods":
            over = event.type == "DELETED" or event.object["status"]["phase"] in ("Succeeded", "Failed")
            (alive.discard if over else alive.add)(event.object["metadata"]["name"])
        assert len(alive) <= 1, f"{run.name}: {alive} at once"


def nothing_was_lost(past: History, name: str) -> None:
    """From one version of the status to the next."""
    statuses = [e.object.get("status", {}) for e in past.events[name] if e.kind == "finetunejobs"]
    before: dict[str, Any] = {}
    for status in statuses:
        for fact in KEPT_FACTS:
            assert before.get(fact) in (None, status.get(fact)), f"{name}: {fact} has changed"
        for counter in KEPT_COUNTERS:
            assert before.get(counter, 0) <= status.get(counter, 0), f"{name}: {counter} has fallen"
        assert names_of(before, "conditions", "type") <= names_of(status, "conditions", "type"), name
        assert names_of(before, "checkpoints", "name") <= names_of(status, "checkpoints", "name"), name
        if len(before.get("attempts", ())) < MOST_ATTEMPTS:
            assert names_of(before, "attempts", "pod") <= names_of(status, "attempts", "pod"), name
        assert reached(before) <= reached(status), f"{name}: the recovery state has gone back"
        ended = {c["type"] for c in before.get("conditions", ()) if c["type"] in ("Complete", "Failed")}
        assert ended <= {c["type"] for c in status["conditions"] if c["status"] == "True"} if ended else True
        before = status


def names_of(status: dict[str, Any], field: str, key: str) -> set[str]:
    """The keys of a list of the status."""
    return {entry[key] for entry in status.get(field, ())}


def reached(status: dict[str, Any]) -> int:
    """The step of the newest recovery state."""
    return int((status.get("recovery") or {}).get("step", 0))
