"""What keeps a job from starting: said with what to do about it, never final, and looked at again by itself."""

from __future__ import annotations

from typing import Any

import pytest

from finetune_api import names
from judges import collection
from kubelet import wait_for
from manifests import job, runtime
from world import script

RUNTIMES = collection(runtime(), "")


def core(world: Any, plural: str) -> str:
    """The path of a core collection in the world's namespace."""
    return f"/api/v1/namespaces/{world.namespace}/{plural}"


@pytest.fixture
def own_runtime(world):
    """A runtime of the test's own, deleted behind it."""
    made = []

    def make(name: str, **spec: Any) -> str:
        full = f"{name}-{world.namespace}"
        world.api.post(RUNTIMES, runtime(full, **spec)).must()
        made.append(full)
        return full

    yield make
    for name in made:
        world.api.delete(f"{RUNTIMES}/{name}").must()


OUTPUT = {"output": {"uri": "pvc://finetune-outputs"}}


def test_a_runtime_that_appears_later(world, own_runtime) -> None:
    name = f"later-{world.namespace}"
    world.apply("early", runtime=name)
    refused = world.wait("early", "Accepted", "False", "RuntimeNotFound")
    assert f"runtime is {name}" in refused["message"]
    assert not world.children("early")
    own_runtime("later", defaults=OUTPUT)
    world.wait("early", "Complete")


def test_two_default_runtimes_are_ambiguous_until_one_goes(world) -> None:
    world.api.post(RUNTIMES, runtime("another-default", default=True, defaults=OUTPUT)).must()
    try:
        world.apply("torn")
        refused = world.wait("torn", "Accepted", "False", "RuntimeAmbiguous")
        assert "another-default, default" in refused["message"]
    finally:
        world.api.delete(f"{RUNTIMES}/another-default").must()
    world.wait("torn", "Accepted")


def test_a_claim_that_appears_later(world) -> None:
    world.apply("early", trainingFile="pvc://finetune-later/train.jsonl")
    refused = world.wait("early", "Accepted", "False", "ClaimNotFound")
    assert "kind: PersistentVolumeClaim" in refused["message"], "the manifest to paste"
    _paste(world, refused["message"])
    world.wait("early", "Accepted")


def _paste(world: Any, message: str) -> None:
    """Do what the message says."""
    manifest = message[message.index("apiVersion: v1") :]
    world.plane.kubectl("apply", "--filename", "-", stdin=manifest)


def test_a_config_map_and_a_key_that_appear_later(world) -> None:
    world.apply("early", trainingFile="configmap://finetune-rows/train.jsonl")
    refused = world.wait("early", "Accepted", "False", "ConfigMapNotFound")
    assert "kubectl create configmap finetune-rows" in refused["message"]
    made = world.api.post(core(world, "configmaps"), {"metadata": {"name": "finetune-rows"}, "data": {"a": "b"}}).must()
    wait_for(lambda: "no key train.jsonl; its keys: a" in world.condition("early", "Accepted")["message"], "the key")
    world.api.patch(f"{core(world, 'configmaps')}/{made['metadata']['name']}", {"data": {"train.jsonl": "{}"}}).must()
    world.wait("early", "Accepted")


def test_a_service_account_that_appears_later(world, own_runtime) -> None:
    name = own_runtime("account", serviceAccountName="trainer", defaults=OUTPUT)
    world.apply("early", runtime=name)
    refused = world.wait("early", "Accepted", "False", "ServiceAccountNotFound")
    assert f"kubectl create serviceaccount trainer -n {world.namespace}" in refused["message"]
    world.api.post(core(world, "serviceaccounts"), {"metadata": {"name": "trainer"}}).must()
    world.wait("early", "Accepted")


@pytest.mark.parametrize(
    ("spec", "entry"),
    [
        ({"trainingFile": "pvc://payroll/a.jsonl"}, 'add "payroll" to its spec.access.claims.read'),
        ({"validationFile": "pvc://payroll/a.jsonl"}, 'add "payroll" to its spec.access.claims.read'),
        ({"model": "pvc://payroll/model"}, 'add "payroll" to its spec.access.claims.read'),
        ({"output": {"uri": "pvc://payroll/out"}}, 'add "payroll" to its spec.access.claims.write'),
        ({"trainingFile": "configmap://passwords/key"}, 'add "passwords" to its spec.access.configMaps'),
        (
            {"trainingFile": "hf://datasets/them/data/a.jsonl"},
            'add "hf://datasets/them/" to its spec.access.uriPrefixes',
        ),
        ({"validationFile": "hf://datasets/them/data/a"}, 'add "hf://datasets/them/"'),
        ({"model": "them/model"}, 'add "hf://them/" to its spec.access.uriPrefixes.read'),
        ({"model": "hf://them/model"}, 'add "hf://them/" to its spec.access.uriPrefixes.read'),
        ({"fromHfModel": "them/model"}, 'add "hf://them/" to its spec.access.uriPrefixes.read'),
        (
            {"hfTokenSecretRef": {"name": "passwords", "key": "token"}},
            'add "passwords" to its spec.access.secrets',
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_access_does_not_name_is_refused_with_the_entry_to_add(world, own_runtime, spec, entry) -> None:
    access = {"uriPrefixes": {"read": ["hf://org/"]}}
    name = own_runtime("strict", access=access, defaults=OUTPUT)
    world.apply("curious", runtime=name, **spec)
    refused = world.wait("curious", "Accepted", "False", "SourceNotAllowed")
    assert entry in refused["message"]
    assert next(iter(spec)) in refused["message"], "the field"
    assert not world.children("curious")


def test_a_namespace_outside_access_is_refused_until_it_is_added(world, own_runtime) -> None:
    name = own_runtime("others", access={"namespaces": ["team-*"]}, defaults=OUTPUT)
    world.apply("stranger", runtime=name)
    refused = world.wait("stranger", "Accepted", "False", "SourceNotAllowed")
    assert f'add "{world.namespace}" to its spec.access.namespaces' in refused["message"]
    world.api.patch(f"{RUNTIMES}/{name}", {"spec": {"access": {"namespaces": ["team-*", world.namespace]}}}).must()
    world.wait("stranger", "Accepted")


@pytest.mark.parametrize(
    ("limits", "spec", "reason", "words"),
    [
        ({"maxMemory": "1Gi"}, {"resources": {"memory": "2Gi"}}, "LimitExceeded", "memory"),
        ({"maxCpu": 1}, {"resources": {"cpu": 2}}, "LimitExceeded", "cpu"),
        ({"maxGpusPerNode": 0}, {"resources": {"gpusPerNode": 1}}, "LimitExceeded", "gpusPerNode"),
    ],
    ids=["memory", "cpu", "gpus"],
)
def test_more_than_the_limits_is_refused_until_the_job_asks_for_less(
    world, own_runtime, limits, spec, reason, words
) -> None:
    name = own_runtime("small", limits=limits, defaults={**OUTPUT, "resources": {"cpu": 1, "memory": "1Gi"}})
    world.apply("greedy", runtime=name, **spec)
    refused = world.wait("greedy", "Accepted", "False", reason)
    assert words in refused["message"]
    world.api.patch(f"{world.jobs}/greedy", {"spec": {"resources": None}}).must()
    world.wait("greedy", "Accepted")


def test_a_model_outside_the_list_is_refused(world, own_runtime) -> None:
    name = own_runtime("listed", models=[{"name": "good", "source": "org/good"}], defaults=OUTPUT)
    world.apply("wrong", runtime=name)
    refused = world.wait("wrong", "Accepted", "False", "ModelNotAllowed")
    assert "choose one of good" in refused["message"]
    world.api.patch(f"{world.jobs}/wrong", {"spec": {"model": "good"}}).must()
    world.wait("wrong", "Accepted")


def test_a_foreign_job_with_the_childs_name_is_left_alone(world) -> None:
    jobs = f"/apis/batch/v1/namespaces/{world.namespace}/jobs"
    container = {"name": "c", "image": "i"}
    template = {"spec": {"restartPolicy": "Never", "containers": [container]}}
    spec = {"template": template, "suspend": True}
    foreign = world.api.post(jobs, {"metadata": {"name": "squat-prepare"}, "spec": spec}).must()
    world.apply("squat", script("squat"))
    refused = world.wait("squat", "Accepted", "False", "NameConflict")
    assert "Job squat-prepare exists" in refused["message"]
    assert world.api.get(f"{jobs}/squat-prepare").must()["metadata"]["uid"] == foreign["metadata"]["uid"]
    world.api.delete(f"{jobs}/squat-prepare").must()
    world.wait("squat", "Complete")


def test_without_the_switch_a_job_with_a_queue_is_refused(world) -> None:
    manifest = job("queued")
    manifest["metadata"]["labels"] = {names.QUEUE_LABEL: "team"}
    world.api.post(world.jobs, manifest).must()
    refused = world.wait("queued", "Accepted", "False", "InvalidSpec")
    assert "settings.kueue" in refused["message"]
    assert not world.children("queued")
    world.kubelet.scripts[world.namespace, "queued"] = script("queued")
    world.api.patch(f"{world.jobs}/queued", {"metadata": {"labels": {names.QUEUE_LABEL: None}}}).must()
    world.wait("queued", "Complete")
