"""The admission policies of the chart: what the operator's account may make, and who may name a Secret."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from apiserver import Api
from builders import JOB_UID, make_job, make_runtime
from finetune_api import names
from finetune_api.status import Resolved, ResolvedModel, ResolvedRuntime
from finetune_api.trainer import Stage
from finetune_operator.plan.network import network_policy, train_service
from finetune_operator.plan.objects import child_manifest
from finetune_operator.plan.trainer_config import trainer_config
from finetune_operator.settings import Settings
from judges import collection
from kubelet import wait_for
from manifests import ROOT, job
from users import granted_everywhere, user

SYSTEM = "finetune-system"
CHART = str(ROOT / "charts" / "finetune-operator")
PLATFORM = {
    "nodeSelector": {"disk": "fast"},
    "tolerations": [{"key": "gpu", "operator": "Exists"}],
    "labels": {"team": "ml"},
    "env": [{"name": "A", "value": "b"}],
    "volumes": [
        {"name": "ca", "configMap": {"name": "ca"}},
        {"name": "s3", "secret": {"secretName": "s3"}},
        {"name": "both", "projected": {"sources": [{"configMap": {"name": "ca"}}, {"secret": {"name": "s3"}}]}},
    ],
}
Change = Callable[[dict[str, Any]], object]


def child(stage: Stage = Stage.TRAIN) -> dict[str, Any]:
    """The Job that the operator makes for a job with a Secret, on a runtime that adds all that it may."""
    made = make_job(hfTokenSecretRef={"name": "finetune-hf", "key": "token"}, trainingFile="configmap://finetune-x/a")
    spec = make_runtime(podTemplate=PLATFORM).spec
    resolved = Resolved(
        runtime=ResolvedRuntime(name="gpu", generation=1, spec=spec.to_json()),
        model=ResolvedModel(source="pvc://finetune-weights/tiny"),
        lora_rank=16,
    )
    return child_manifest(made, stage, spec, trainer_config(made, spec, resolved, "team/tiny-6f1c2b3a"))


def pod(manifest: dict[str, Any]) -> dict[str, Any]:
    """The pod's spec of a Job."""
    return dict(manifest)["spec"]["template"]["spec"]


def container(manifest: dict[str, Any]) -> dict[str, Any]:
    """The only container of a Job."""
    return pod(manifest)["containers"][0]


def volume(source: dict[str, Any]) -> Change:
    """A Job with one more volume."""
    return lambda j: pod(j)["volumes"].append({"name": "more", **source})


def secured(**fields: Any) -> Change:
    """A Job whose container has another security context."""
    return lambda j: container(j)["securityContext"].update(fields)


def pod_secured(**fields: Any) -> Change:
    """A Job whose pod has another security context."""
    return lambda j: pod(j)["securityContext"].update(fields)


def without(where: Callable[[dict[str, Any]], dict[str, Any]], key: str) -> Change:
    """A Job that lacks something."""
    return lambda j: where(j).pop(key)


TOKEN = {"serviceAccountToken": {"path": "token"}}
BAD_JOBS: dict[str, tuple[Change, str]] = {
    "without the label": (lambda j: j["metadata"]["labels"].pop(names.MANAGED_BY_LABEL), "with its label"),
    "with another's label": (
        lambda j: j["metadata"]["labels"].update({names.MANAGED_BY_LABEL: "Helm"}),
        "with its label",
    ),
    "without an owner": (without(lambda j: j["metadata"], "ownerReferences"), "what a FineTuneJob controls"),
    "of another owner": (
        lambda j: j["metadata"]["ownerReferences"][0].update(
            {"apiVersion": "apps/v1", "kind": "Deployment", "blockOwnerDeletion": False}
        ),
        "what a FineTuneJob controls",
    ),
    "of a pod without the label": (
        lambda j: j["spec"]["template"]["metadata"]["labels"].pop(names.MANAGED_BY_LABEL),
        "pods bear its label",
    ),
    "privileged": (secured(privileged=True, allowPrivilegeEscalation=True), "no privilege"),
    "that may gain privileges": (secured(allowPrivilegeEscalation=True), "no way to gain one"),
    "that does not say so": (without(lambda j: container(j)["securityContext"], "allowPrivilegeEscalation"), "no way"),
    "without a security context": (without(container, "securityContext"), "no way to gain one"),
    "with capabilities": (secured(capabilities={"drop": ["ALL"], "add": ["NET_ADMIN"]}), "no capability"),
    "that keeps capabilities": (secured(capabilities={"drop": ["NET_RAW"]}), "no capability"),
    "with a root to write": (secured(readOnlyRootFilesystem=False), "read-only root"),
    "with an unmasked /proc": (
        lambda j: (pod(j).update(hostUsers=False), container(j)["securityContext"].update(procMount="Unmasked")),
        "no privilege",
    ),
    "unconfined": (secured(seccompProfile={"type": "Unconfined"}), "no privilege"),
    "of an unconfined pod": (pod_secured(seccompProfile={"type": "Unconfined"}), "seccomp"),
    "without a seccomp profile": (without(lambda j: pod(j)["securityContext"], "seccompProfile"), "seccomp"),
    "with SELinux options": (pod_secured(seLinuxOptions={"type": "spc_t"}), "SELinux"),
    "without AppArmor": (pod_secured(appArmorProfile={"type": "Unconfined"}), "AppArmor"),
    "with sysctls": (pod_secured(sysctls=[{"name": "kernel.msgmax", "value": "1"}]), "sysctls"),
    "of root": (pod_secured(runAsUser=0), "as user 65532"),
    "of another user": (pod_secured(runAsUser=1000), "as user 65532"),
    "of the image's user": (without(lambda j: pod(j)["securityContext"], "runAsUser"), "as user 65532"),
    "that may be root": (pod_secured(runAsNonRoot=False), "as user 65532"),
    "of a container of root": (secured(runAsUser=0), "as user 65532"),
    "of a container that may be root": (secured(runAsNonRoot=False), "as user 65532"),
    "on the host's network": (lambda j: pod(j).update(hostNetwork=True), "of the host"),
    "among the host's processes": (lambda j: pod(j).update(hostPID=True), "of the host"),
    "with the host's memory": (lambda j: pod(j).update(hostIPC=True), "of the host"),
    "with a port of the host": (
        lambda j: container(j)["ports"].append({"containerPort": 9000, "hostPort": 9000}),
        "of the host",
    ),
    "on a node of its choice": (lambda j: pod(j).update(nodeName="control-plane"), "placed by a scheduler"),
    "with a token": (lambda j: pod(j).update(automountServiceAccountToken=True), "no service account token"),
    "with a token by default": (without(pod, "automountServiceAccountToken"), "no service account token"),
    "with a projected token": (volume({"projected": {"sources": [TOKEN]}}), "without a service account token"),
    "with a path of the host": (volume({"hostPath": {"path": "/"}}), "volumes of the kinds"),
    "with a network share": (volume({"nfs": {"server": "nfs", "path": "/"}}), "volumes of the kinds"),
    "with a first container of root": (
        lambda j: pod(j).update(initContainers=[{**container(j), "name": "first", "securityContext": {}}]),
        "no way to gain one",
    ),
}


@pytest.fixture(scope="module")
def as_operator(plane, api, operator_account) -> Iterator[Api]:
    """The operator's account, once the policies hold."""
    connection = plane.api(json.loads(operator_account.read_text())["users"][0]["user"]["token"])
    bad = child()
    BAD_JOBS["privileged"][0](bad)
    wait_for(lambda: dry_run(connection, "batch/v1", "jobs", bad).status == 403, "the policies")
    yield connection
    connection.close()


def dry_run(api: Api, version: str, plural: str, manifest: dict[str, Any]) -> Any:
    """What the API server says of making this, without it being made."""
    root = f"/apis/{version}" if "/" in version else f"/api/{version}"
    body = copy.deepcopy(manifest)
    body["metadata"]["namespace"] = "default"
    return api.post(f"{root}/namespaces/default/{plural}?dryRun=All", body)


@pytest.mark.parametrize("stage", list(Stage))
def test_the_operator_may_make_its_own_jobs(as_operator, stage) -> None:
    answer = dry_run(as_operator, "batch/v1", "jobs", child(stage))
    assert answer.ok, answer.message


@pytest.mark.parametrize("which", BAD_JOBS)
def test_the_operator_may_not_make_a_job(as_operator, api, which) -> None:
    manifest = child()
    change, sentence = BAD_JOBS[which]
    change(manifest)
    answer = dry_run(as_operator, "batch/v1", "jobs", manifest)
    assert (answer.status, "ValidatingAdmissionPolicy" in answer.message) == (403, True), answer.message
    assert sentence in answer.message
    by_others = dry_run(api, "batch/v1", "jobs", manifest)
    assert "ValidatingAdmissionPolicy" not in by_others.message


def test_the_operator_may_not_change_the_job_of_another(as_operator, api, namespace) -> None:
    theirs = child()
    theirs["metadata"] = {"name": "theirs"}
    path = f"/apis/batch/v1/namespaces/{namespace}/jobs"
    api.post(path, theirs).must()
    answer = as_operator.patch(f"{path}/theirs", {"spec": {"suspend": True}})
    assert (answer.status, "ValidatingAdmissionPolicy" in answer.message) == (403, True), answer.message
    answer = as_operator.patch(f"{path}/theirs", {"metadata": {"labels": child()["metadata"]["labels"]}})
    assert (answer.status, "ValidatingAdmissionPolicy" in answer.message) == (403, True), answer.message


OURS = {names.MANAGED_BY_LABEL: names.MANAGED_BY, names.JOB_UID_LABEL: JOB_UID}
SERVICE = train_service(make_job())
NETWORK_POLICY = network_policy(make_job(), Settings().network_policy)
CLAIM = {
    "metadata": {"name": "finetune-outputs", "labels": OURS},
    "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
}
KINDS = {
    "Service": ("v1", "services", SERVICE),
    "NetworkPolicy": ("networking.k8s.io/v1", "networkpolicies", NETWORK_POLICY),
    "PersistentVolumeClaim": ("v1", "persistentvolumeclaims", CLAIM),
}
BAD_OTHERS: list[tuple[str, Change, str]] = [
    ("Service", lambda s: s["metadata"].pop("labels"), "with its label"),
    ("Service", lambda s: s["metadata"].pop("ownerReferences"), "what a FineTuneJob controls"),
    ("Service", lambda s: s["spec"].pop("clusterIP"), "are headless"),
    ("Service", lambda s: s["spec"].update(selector={"app": "database"}), "select the pods of their own"),
    ("Service", lambda s: s["spec"].pop("selector"), "select the pods of their own"),
    ("Service", lambda s: s["spec"].update(externalIPs=["10.1.2.3"]), "are headless"),
    ("NetworkPolicy", lambda n: n["metadata"].pop("labels"), "with its label"),
    ("NetworkPolicy", lambda n: n["metadata"].pop("ownerReferences"), "what a FineTuneJob controls"),
    ("Service", lambda s: s["spec"].update(selector={names.JOB_UID_LABEL: "another"}), "select the pods of their own"),
    ("NetworkPolicy", lambda n: n["spec"].update(podSelector={}), "select the pods of their own"),
    ("PersistentVolumeClaim", lambda c: c["metadata"].pop("labels"), "with its label"),
]


@pytest.fixture(scope="module")
def with_all_rights(as_operator, api) -> Iterator[Api]:
    """The operator's account with the right to make these kinds, whether or not it has it by itself."""
    rules: list[dict[str, object]] = [
        {"apiGroups": [""], "resources": ["services", "persistentvolumeclaims"], "verbs": ["create"]},
        {"apiGroups": ["networking.k8s.io"], "resources": ["networkpolicies"], "verbs": ["create"]},
    ]
    with granted_everywhere(api, "more-for-the-operator", (SYSTEM, "finetune-operator"), rules):
        wait_for(lambda: all(dry_run(as_operator, *what).ok for what in KINDS.values()), "its rights")
        bad = [(KINDS[kind], change) for kind, change, _ in BAD_OTHERS]
        wait_for(lambda: not any(dry_run(as_operator, *changed(*one)).ok for one in bad), "the policies")
        yield as_operator


def changed(what: tuple[str, str, dict[str, Any]], change: Change) -> tuple[str, str, dict[str, Any]]:
    """A manifest with something wrong."""
    version, plural, manifest = what[0], what[1], copy.deepcopy(what[2])
    change(manifest)
    return version, plural, manifest


@pytest.mark.parametrize(("kind", "change", "sentence"), BAD_OTHERS, ids=[f"{k}-{s}" for k, _, s in BAD_OTHERS])
def test_the_operator_may_not_make_other_objects(with_all_rights, kind, change, sentence) -> None:
    answer = dry_run(with_all_rights, *changed(KINDS[kind], change))
    assert (answer.status, sentence in answer.message) == (403, True), answer.message


@pytest.fixture
def secrets_policy(plane, api) -> Iterator[None]:
    """The second policy, switched on for the whole cluster."""
    where = ["--namespace", SYSTEM, "--set", "admissionPolicies.secrets.enabled=true", "--kube-version", "1.34.0"]
    rendered = plane.run("helm", "template", "ask", CHART, "-s", "templates/policy-secrets.yaml", *where)
    assert rendered.returncode == 0, rendered.stderr
    plane.kubectl("apply", "-f", "-", stdin=rendered.stdout)
    yield
    plane.kubectl("delete", "-f", "-", stdin=rendered.stdout)


def test_whoever_names_a_secret_must_be_allowed_to_read_it(plane, api, namespace, operator_account, secrets_policy):
    role = {
        "metadata": {"name": "reader"},
        "rules": [{"apiGroups": [""], "resources": ["secrets"], "resourceNames": ["finetune-hf"], "verbs": ["get"]}],
    }
    api.post(f"/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/roles", role).must()
    jobs = collection(job(), namespace)

    def asks(name: str, secret: str | None = None) -> dict[str, Any]:
        return job(name, **({"hfTokenSecretRef": {"name": secret, "key": "token"}} if secret else {}))

    with (
        user(plane, namespace, "writer", "finetune-operator-edit") as writer,
        user(plane, namespace, "holder", "finetune-operator-edit") as holder,
    ):
        account = f"--serviceaccount={namespace}:holder"
        plane.kubectl("create", "rolebinding", "reads", "--role=reader", account, "--namespace", namespace)
        wait_for(lambda: holder.post(f"{jobs}?dryRun=All", asks("a", "finetune-hf")).ok, "the holder's rights")
        wait_for(lambda: not writer.post(f"{jobs}?dryRun=All", asks("a", "finetune-hf")).ok, "the policy")

        refused = writer.post(jobs, asks("mine", "finetune-hf"))
        who = f"system:serviceaccount:{namespace}:writer"
        assert refused.status == 403
        assert f"spec.hfTokenSecretRef names Secret finetune-hf, which {who} may not read" in refused.message
        assert holder.post(jobs, asks("theirs", "finetune-other")).status == 403
        assert writer.post(jobs, asks("plain")).ok
        key = {"name": "finetune-hf", "key": "key"}
        refused = writer.post(jobs, job("tracked", tracking={"wandb": {"apiKeySecretRef": key}}))
        assert f"spec.tracking.wandb.apiKeySecretRef names Secret finetune-hf, which {who} may not" in refused.message

        holder.post(jobs, asks("shared", "finetune-hf")).must()
        assert writer.patch(f"{jobs}/plain", asks("plain", "finetune-hf")).status == 403
        assert writer.patch(f"{jobs}/shared", {"spec": {"trainingFile": "pvc://finetune-data/other"}}).status == 403
        assert writer.patch(f"{jobs}/shared", {"metadata": {"labels": {"a": "b"}}}).ok
        api.patch(f"{jobs}/shared/status", {"status": {"startTime": "2026-01-01T00:00:00Z"}}).must()
        assert writer.patch(f"{jobs}/shared", {"spec": {"cancel": True}}).ok
