"""What stands around the pods of a job: several of them, names and rules for them, and a claim that is made."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Callable, Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

import installed
from finetune_api.report import Report
from finetune_api.status import Metrics
from finetune_api.trainer import ExitCode
from judges import collection
from kubelet import KILLED, Behaviour, wait_for
from manifests import contains, job, runtime
from world import OperatorProcess, World, progress, published, script

RUNTIMES = collection(runtime(), "")
SHARED = "finetune-shared"
PLACES: dict[str, Any] = {
    "trainingFile": f"pvc://{SHARED}/train.jsonl",
    "output": {"uri": f"pvc://{SHARED}/out"},
}
TEMPLATE: dict[str, Any] = {
    "labels": {"team": "ml"},
    "annotations": {"note": "results"},
    "spec": {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "5Gi"}}},
}


@pytest.fixture
def several(world) -> Iterator[str]:
    """A runtime of two nodes, and a claim that both can mount."""
    spec = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}
    world.api.post(world.path("persistentvolumeclaims"), {"metadata": {"name": SHARED}, "spec": spec}).must()
    name = f"several-{world.namespace}"
    world.api.post(RUNTIMES, runtime(name, limits={"maxNodes": 2})).must()
    yield name
    world.api.delete(f"{RUNTIMES}/{name}").must()


def apply_several(world: World, several: str, name: str, train: list[Behaviour], **spec: Any) -> str:
    """A job on two nodes; its training pods, in the order in which they are made, do as told."""
    where = {"runtime": several, "resources": {"nodes": 2}, **PLACES, **spec}
    return world.apply(name, script(name, train=train), **where)


# --- several pods ----------------------------------------------------------------------------------------------------


def until(event: threading.Event, *steps: int, **more: Any) -> Behaviour:
    """A training pod that goes on until told to end."""
    return Behaviour(tuple(progress(step) for step in steps), seconds=0.3, until=event, **more)


def test_two_nodes_lose_a_pod_and_end_well(world, several) -> None:
    """One attempt is lost, counted once; its peer leaves by exit 4, which counts nothing; both are made anew."""
    world.restrict()
    lost, over = threading.Event(), threading.Event()
    first = [until(lost, 1, 2, exit_code=ExitCode.PEER_LOST), until(lost, 1, 2, silent=True, exit_code=KILLED)]
    again = [until(over, 3, 4, word=published("two"))] * 2
    uid = apply_several(world, several, "two", [*first, *again])
    world.wait("two", "Running", seconds=60)
    made = world.children("two")["two-train"]["spec"]
    assert (made["completionMode"], made["completions"], made["parallelism"]) == ("Indexed", 2, 2)
    pods = {p["spec"]["hostname"]: p for p in world.pods("train")}
    assert set(pods) == {"two-train-0", "two-train-1"}
    assert {p["spec"]["subdomain"] for p in pods.values()} == {"two-train"}
    service = world.found("services", "two-train")["spec"]
    assert service["clusterIP"] == "None"
    for pod in pods.values():
        assert service["selector"].items() <= pod["metadata"]["labels"].items()
    lost.set()
    wait_for(lambda: world.status("two").get("restarts") == 1, "the lost attempt", 60)
    over.set()
    world.wait("two", "Complete", seconds=60)
    status = world.status("two")
    assert (status["restarts"], status.get("disruptions", 0)) == (1, 0)
    trained = [a for a in status["attempts"] if a["pod"].startswith("two-train-")]
    assert [a["exitCode"] for a in trained] == [KILLED, 0], "one for each time that they met"
    assert len(world.pods("train")) == 4
    assert world.found("jobs", "two-train")["status"]["failed"] == 1
    assert world.get("two")["metadata"]["uid"] == uid


def test_a_claim_that_one_node_mounts_is_no_place_for_two(world, several) -> None:
    apply_several(world, several, "narrow", [], output={"uri": "pvc://finetune-outputs"})
    told = world.wait("narrow", "Accepted", "False", "AccessMode")
    assert "which 2 pods mount, but claim finetune-outputs is ReadWriteOnce" in told["message"]
    world.ask("narrow", resources={"nodes": 1})
    world.wait("narrow", "Accepted")


# --- beside the Job --------------------------------------------------------------------------------------------------


def moving(over: threading.Event, word: dict[str, Any]) -> Behaviour:
    """A training pod that has news whenever it is asked: each is a reason to look at its job."""
    numbers = itertools.count(1)

    def answer(handler: BaseHTTPRequestHandler, report: Report) -> None:
        now = report.model_copy(update={**progress(1), "metrics": Metrics(train={"loss": 1.0 / next(numbers)})})
        body = json.dumps(now.to_json()).encode()
        handler.send_response(HTTPStatus.OK)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return Behaviour(until=over, answer=answer, word=word)


def test_what_vanishes_is_made_again_while_the_job_runs_and_not_after(world, several) -> None:
    over = threading.Event()
    uid = apply_several(world, several, "torn", [moving(over, published("torn"))])
    world.wait("torn", "Running", seconds=60)
    for kind, name in (("services", "torn-train"), ("networkpolicies", "torn")):
        old = world.found(kind, name)
        world.api.delete(world.path(kind, name)).must()
        new = wait_for(lambda kind=kind, name=name: world.found(kind, name), f"another of {kind}", 60)
        assert new["metadata"]["uid"] != old["metadata"]["uid"]
        assert new["metadata"]["ownerReferences"][0]["uid"] == uid
        assert contains(new["spec"], {k: v for k, v in old["spec"].items() if k != "clusterIPs"})
    over.set()
    world.wait("torn", "Complete", seconds=60)
    assert world.status("torn")["restarts"] == 0
    gone = (("services", "torn-train"), ("networkpolicies", "torn"), ("jobs", "torn-train"))
    for kind, name in gone:
        world.api.delete(world.path(kind, name)).must()
    world.ask("torn", ttlSecondsAfterFinished=10000)
    generation = world.get("torn")["metadata"]["generation"]
    wait_for(lambda: world.status("torn")["observedGeneration"] == generation, "a look after the end")
    assert not [name for kind, name in gone if world.found(kind, name)]


def foreign(kind: str, name: str) -> dict[str, Any]:
    """Somebody else's object, valid and harmless."""
    spec = {"ports": [{"port": 80}]} if kind == "services" else {"podSelector": {"matchLabels": {"app": "a"}}}
    return {"metadata": {"name": name}, "spec": spec}


@pytest.mark.parametrize(
    ("kind", "suffix", "word"), [("services", "-train", "Service"), ("networkpolicies", "", "NetworkPolicy")]
)
def test_a_foreign_object_in_the_way_is_named_and_left_alone(world, several, kind, suffix, word) -> None:
    name = f"late{suffix}"
    theirs = world.api.post(world.path(kind), foreign(kind, name)).must()
    apply_several(world, several, "late", [Behaviour((progress(1),), word=published("late"))])
    told = world.wait("late", "Accepted", "False", "NameConflict", seconds=60)
    assert f"{word} {name} exists and has no controller" in told["message"]
    assert "late-train" not in world.children("late")
    still = world.found(kind, name)
    assert (still["metadata"]["uid"], still["spec"]) == (theirs["metadata"]["uid"], theirs["spec"])
    world.api.delete(world.path(kind, name)).must()
    world.wait("late", "Complete", seconds=60)
    assert world.condition("late", "Accepted")["status"] == "True"


def test_a_service_that_the_api_server_refuses_is_told_and_keeps_the_job_waiting(world, several) -> None:
    path = world.path("resourcequotas")
    world.api.post(path, {"metadata": {"name": "none"}, "spec": {"hard": {"services": "0"}}}).must()
    used = {"status": {"hard": {"services": "0"}, "used": {"services": "0"}}}
    world.api.patch(f"{path}/none/status", used).must()
    apply_several(world, several, "held", [Behaviour((progress(1),), word=published("held"))])

    def refused() -> bool:
        return "the API server refused Service held-train: " in world.condition("held", "Running").get("message", "")

    wait_for(refused, "the refusal", 60)
    assert world.condition("held", "Running")["reason"] == "Pending"
    assert "held-train" not in world.children("held"), "its pods would look for each other in vain"
    world.api.delete(f"{path}/none").must()
    world.wait("held", "Complete", seconds=60)


# --- a claim from the runtime's template -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def claiming(quiet_plane, tmp_path_factory) -> Iterator[Callable[[bool], OperatorProcess]]:
    """Starts an operator with or without settings.createClaims, with the rights that the chart grants for it."""
    folder: Path = tmp_path_factory.mktemp("claiming")
    running: list[OperatorProcess] = []

    def start(creates: bool) -> OperatorProcess:
        while running:
            assert running.pop().stop() == 0
        switch = ("--set", f"settings.createClaims={json.dumps(creates)}")
        account = installed.operator_account(quiet_plane, folder, *switch)
        impatient = {"pollPeriodSeconds": 0.3, "resyncPeriodSeconds": 1, "healthPort": 0}
        settings = folder / "settings.yaml"
        settings.write_text(json.dumps({**impatient, "createClaims": creates, "createDefaultRuntime": False}))
        made = OperatorProcess(account, settings, folder / "operator.log")
        made.start()
        running.append(made)
        return made

    yield start
    while running:
        assert running.pop().stop() == 0
    installed.operator_token(quiet_plane)


def test_a_missing_claim_is_made_where_that_is_switched_on(quiet_plane, quiet_namespace, claiming) -> None:
    """Off: the job waits for it. On: it is made, bears the template's fields, belongs to nobody, and is made once."""
    api = quiet_plane.api()
    name = f"claims-{quiet_namespace}"
    api.post(RUNTIMES, runtime(name, claimTemplate=TEMPLATE)).must()
    claim = f"/api/v1/namespaces/{quiet_namespace}/persistentvolumeclaims/finetune-new"
    jobs = collection(job(), quiet_namespace)

    def accepted(which: str) -> str:
        conditions = api.get(f"{jobs}/{which}").must().get("status", {}).get("conditions", [])
        return next((str(c["reason"]) for c in conditions if c["type"] == "Accepted"), "")

    try:
        claiming(False)
        api.post(jobs, job("first", runtime=name, output={"uri": "pvc://finetune-new/out"})).must()
        wait_for(lambda: accepted("first") == "ClaimNotFound", "the claim to be missed", 60)
        assert not api.get(claim).ok
        claiming(True)
        made = wait_for(lambda: api.get(claim).ok and api.get(claim).body, "the claim", 60)
        assert contains(made["spec"], TEMPLATE["spec"])
        assert made["metadata"]["labels"]["team"] == "ml"
        assert made["metadata"]["annotations"]["note"] == "results"
        assert "ownerReferences" not in made["metadata"]
        wait_for(lambda: accepted("first") == "Accepted", "the job to be accepted", 60)
        api.post(jobs, job("second", runtime=name, output={"uri": "pvc://finetune-new/other"})).must()
        children = f"/apis/batch/v1/namespaces/{quiet_namespace}/jobs"
        wait_for(lambda: api.get(f"{children}/second-prepare").ok, "the second job", 60)
        assert api.get(claim).body["metadata"]["uid"] == made["metadata"]["uid"]
    finally:
        api.delete(f"{RUNTIMES}/{name}")
        api.close()
