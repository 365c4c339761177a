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
from builders import JOB_UID, make_job, make_runtime
from finetune_api.names import JOB_UID_LABEL
from finetune_api.report import Report
from finetune_api.status import Metrics, Resolved, ResolvedModel, ResolvedRuntime
from finetune_api.trainer import Stage
from finetune_operator.plan.claims import claim_template
from finetune_operator.plan.network import network_policy, train_service
from finetune_operator.plan.objects import child_manifest
from finetune_operator.plan.trainer_config import trainer_config
from finetune_operator.settings import NetworkPolicySettings, OperatorPods, Settings
from judges import collection
from kubelet import KILLED, Behaviour, wait_for
from manifests import job, runtime
from world import OperatorProcess, World, progress, published, script

RUNTIMES = collection(runtime(), "")
SHARED, PEER_LOST = "finetune-shared", 4
PLACES: dict[str, Any] = {
    "trainingFile": f"pvc://{SHARED}/train.jsonl",
    "output": {"uri": f"pvc://{SHARED}/out"},
}
TEMPLATE: dict[str, Any] = {
    "labels": {"team": "ml"},
    "annotations": {"note": "results"},
    "spec": {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "5Gi"}}},
}


def path_of(world: World, kind: str, name: str = "") -> str:
    """Where a kind of object of the world's namespace lies."""
    root = {
        "services": "/api/v1",
        "persistentvolumeclaims": "/api/v1",
        "resourcequotas": "/api/v1",
        "networkpolicies": "/apis/networking.k8s.io/v1",
        "jobs": "/apis/batch/v1",
    }[kind]
    return f"{root}/namespaces/{world.namespace}/{kind}" + (f"/{name}" if name else "")


def found(world: World, kind: str, name: str) -> Any:
    """The object, or None."""
    answer = world.api.get(path_of(world, kind, name))
    return answer.body if answer.ok else None


@pytest.fixture
def several(world) -> Iterator[str]:
    """A runtime of two nodes, and a claim that both can mount."""
    spec = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}
    world.api.post(path_of(world, "persistentvolumeclaims"), {"metadata": {"name": SHARED}, "spec": spec}).must()
    name = f"several-{world.namespace}"
    world.api.post(RUNTIMES, runtime(name, limits={"maxNodes": 2})).must()
    yield name
    world.api.delete(f"{RUNTIMES}/{name}").must()


def apply_several(world: World, several: str, name: str, train: list[Behaviour], **spec: Any) -> str:
    """A job on two nodes; its training pods, in the order in which they are made, do as told."""
    where = {"runtime": several, "resources": {"nodes": 2}, **PLACES, **spec}
    return world.apply(name, script(name, train=train), **where)


# --- manifests -------------------------------------------------------------------------------------------------------


def made_by_plan() -> dict[str, tuple[str, dict[str, Any]]]:
    """Everything that a plan makes, with all that a job and a runtime may ask for."""
    template = {
        "labels": {"team": "ml"},
        "annotations": {"note": "a"},
        "env": [{"name": "A", "value": "b"}],
        "envFrom": [{"configMapRef": {"name": "proxy"}}],
        "volumes": [{"name": "ca", "configMap": {"name": "ca"}}, {"name": "nvme", "ephemeral": ephemeral()}],
        "volumeMounts": [{"name": "ca", "mountPath": "/ca"}, {"name": "nvme", "mountPath": "/scratch"}],
        "nodeSelector": {"pool": "gpu"},
        "tolerations": [{"key": "gpu", "operator": "Exists"}],
        "affinity": {"podAntiAffinity": anti_affinity()},
    }
    size = {"nodes": 2, "gpusPerNode": 1, "cpu": "500m", "memory": "4Gi"}
    owner = make_job(resources=size, hfTokenSecretRef={"name": "finetune-hf", "key": "token"}, trainingFile=ROWS)
    spec = make_runtime(
        podTemplate=template,
        claimTemplate=TEMPLATE,
        imagePullSecrets=[{"name": "registry"}],
        gpuResourceName="amd.com/gpu",
    ).spec
    resolved = Resolved(
        runtime=ResolvedRuntime(name="gpu", generation=1, spec=spec.to_json()),
        model=ResolvedModel(source="pvc://finetune-weights/tiny"),
        lora_rank=16,
    )
    config = trainer_config(owner, spec, resolved, "team/tiny-6f1c2b3a")
    peers = OperatorPods(namespace="finetune-system", labels={"app.kubernetes.io/name": "finetune-operator"})
    out = ({"to": [{"ipBlock": {"cidr": "10.0.0.0/8"}}], "ports": [{"protocol": "TCP", "port": 443}]},)
    rules = NetworkPolicySettings(enabled=True, operator=peers, scrape_namespaces=("monitoring",), egress=out)
    claim = claim_template(owner, spec, Settings(create_claims=True))
    assert claim is not None
    return {
        "prepare": ("jobs", child_manifest(owner, Stage.PREPARE, spec, config)),
        "train": ("jobs", child_manifest(owner, Stage.TRAIN, spec, config)),
        "service": ("services", train_service(owner)),
        "policy": ("networkpolicies", network_policy(owner, rules)),
        "open policy": ("networkpolicies", network_policy(owner, NetworkPolicySettings(enabled=True))),
        "claim": ("persistentvolumeclaims", claim),
    }


ROWS = "configmap://finetune-rows/train.jsonl"
MADE = ("prepare", "train", "service", "policy", "open policy", "claim")


def ephemeral() -> dict[str, Any]:
    """A volume of the pod's own."""
    spec = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
    return {"volumeClaimTemplate": {"spec": spec}}


def anti_affinity() -> dict[str, Any]:
    """Not two pods of a job on one node."""
    term = {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {JOB_UID_LABEL: JOB_UID}}}
    return {"requiredDuringSchedulingIgnoredDuringExecution": [term]}


def restricted(world: World) -> None:
    """The namespace enforces the standard, and warns whoever makes a Job whose pods would be refused."""
    prefix = "pod-security.kubernetes.io"
    labels = {f"{prefix}/{mode}": "restricted" for mode in ("enforce", "warn")}
    world.api.patch(f"/api/v1/namespaces/{world.namespace}", {"metadata": {"labels": labels}}).must()


def test_a_restricted_namespace_takes_all_that_is_made(world) -> None:
    """Every field is known, and a pod from each Job's template passes the standard by itself."""
    restricted(world)
    manifests = made_by_plan()
    assert set(manifests) == set(MADE)
    for kind, manifest in manifests.values():
        manifest["metadata"]["namespace"] = world.namespace
        answer = world.api.post(f"{path_of(world, kind)}?dryRun=All&fieldValidation=Strict", manifest)
        assert answer.ok, answer.message
        stored = answer.body["spec"]
        assert contains(stored, manifest["spec"]), f"{kind}: the API server has changed or dropped something"
        if kind == "jobs":
            pod = {"metadata": {"name": "a", **manifest["spec"]["template"]["metadata"]}}
            pod["spec"] = manifest["spec"]["template"]["spec"]
            pods = f"/api/v1/namespaces/{world.namespace}/pods?dryRun=All&fieldValidation=Strict"
            answer = world.api.post(pods, pod)
            assert answer.ok, answer.message
            pod["spec"]["hostNetwork"] = True
            assert "violates PodSecurity" in world.api.post(pods, pod).message, "the standard is enforced"


def contains(whole: Any, part: Any) -> bool:
    """Whether `whole` has all of `part`; the API server only adds defaults."""
    if isinstance(part, dict):
        return isinstance(whole, dict) and all(contains(whole.get(key), value) for key, value in part.items())
    if isinstance(part, list):
        return isinstance(whole, list) and len(whole) == len(part) and all(map(contains, whole, part))
    return bool(whole == part)


def test_a_template_that_leaves_the_standard_is_refused_before_anything_is_made(world) -> None:
    name = f"open-{world.namespace}"
    volume = {"name": "disk", "hostPath": {"path": "/"}}
    made = world.api.post(RUNTIMES, runtime(name, podTemplate={"volumes": [volume]})).must()
    try:
        world.apply("loose", runtime=name, output={"uri": "pvc://finetune-outputs"})
        told = world.wait("loose", "Accepted", "False", "InvalidSpec")
        assert f"FineTuneRuntime {name}: podTemplate.volumes[0] (disk) is a volume of kind hostPath" in told["message"]
        assert not world.children("loose")
        made["spec"]["podTemplate"]["volumes"] = []
        world.api.put(f"{RUNTIMES}/{name}", made).must()
        world.wait("loose", "Accepted")
    finally:
        world.api.delete(f"{RUNTIMES}/{name}").must()


# --- several pods ----------------------------------------------------------------------------------------------------


def until(event: threading.Event, *steps: int, **more: Any) -> Behaviour:
    """A training pod that goes on until told to end."""
    return Behaviour(tuple(progress(step) for step in steps), seconds=0.3, until=event, **more)


def test_two_nodes_lose_a_pod_and_end_well(world, several) -> None:
    """One attempt is lost, counted once; its peer leaves by exit 4, which counts nothing; both are made anew."""
    restricted(world)
    lost, over = threading.Event(), threading.Event()
    first = [until(lost, 1, 2, exit_code=PEER_LOST), until(lost, 1, 2, silent=True, exit_code=KILLED)]
    again = [until(over, 3, 4, word=published("two"))] * 2
    uid = apply_several(world, several, "two", [*first, *again])
    world.wait("two", "Running", seconds=60)
    made = world.children("two")["two-train"]["spec"]
    assert (made["completionMode"], made["completions"], made["parallelism"]) == ("Indexed", 2, 2)
    pods = {p["spec"]["hostname"]: p for p in world.pods("train")}
    assert set(pods) == {"two-train-0", "two-train-1"}
    assert {p["spec"]["subdomain"] for p in pods.values()} == {"two-train"}
    service = found(world, "services", "two-train")["spec"]
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
    assert found(world, "jobs", "two-train")["status"]["failed"] == 1
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
        old = found(world, kind, name)
        world.api.delete(path_of(world, kind, name)).must()
        new = wait_for(lambda kind=kind, name=name: found(world, kind, name), f"another of {kind}", 60)
        assert new["metadata"]["uid"] != old["metadata"]["uid"]
        assert new["metadata"]["ownerReferences"][0]["uid"] == uid
        assert contains(new["spec"], {k: v for k, v in old["spec"].items() if k != "clusterIPs"})
    over.set()
    world.wait("torn", "Complete", seconds=60)
    assert world.status("torn")["restarts"] == 0
    gone = (("services", "torn-train"), ("networkpolicies", "torn"), ("jobs", "torn-train"))
    for kind, name in gone:
        world.api.delete(path_of(world, kind, name)).must()
    world.ask("torn", ttlSecondsAfterFinished=10000)
    generation = world.get("torn")["metadata"]["generation"]
    wait_for(lambda: world.status("torn")["observedGeneration"] == generation, "a look after the end")
    assert not [name for kind, name in gone if found(world, kind, name)]


def foreign(kind: str, name: str) -> dict[str, Any]:
    """Somebody else's object, valid and harmless."""
    spec = {"ports": [{"port": 80}]} if kind == "services" else {"podSelector": {"matchLabels": {"app": "a"}}}
    return {"metadata": {"name": name}, "spec": spec}


@pytest.mark.parametrize(
    ("kind", "suffix", "word"), [("services", "-train", "Service"), ("networkpolicies", "", "NetworkPolicy")]
)
def test_a_foreign_object_in_the_way_is_named_and_left_alone(world, several, kind, suffix, word) -> None:
    name = f"late{suffix}"
    theirs = world.api.post(path_of(world, kind), foreign(kind, name)).must()
    apply_several(world, several, "late", [Behaviour((progress(1),), word=published("late"))])
    told = world.wait("late", "Accepted", "False", "NameConflict", seconds=60)
    assert f"{word} {name} exists and has no controller" in told["message"]
    assert "late-train" not in world.children("late")
    still = found(world, kind, name)
    assert (still["metadata"]["uid"], still["spec"]) == (theirs["metadata"]["uid"], theirs["spec"])
    world.api.delete(path_of(world, kind, name)).must()
    world.wait("late", "Complete", seconds=60)
    assert world.condition("late", "Accepted")["status"] == "True"


def test_a_service_that_the_api_server_refuses_is_told_and_keeps_the_job_waiting(world, several) -> None:
    path = path_of(world, "resourcequotas")
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
