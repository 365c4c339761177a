"""The GitOps examples: what kustomize makes is accepted, and Flux's expressions tell a job's end on a real server."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from apiserver import Api
from judges import collection, server_verdict
from kubelet import wait_for
from manifests import ROOT, documents, job, read

GITOPS = ROOT / "examples" / "gitops"
POLICIES = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies"
BINDINGS = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings"
EXPRESSIONS: dict[str, str] = read(GITOPS / "flux" / "kustomization.yaml")[0]["spec"]["healthCheckExprs"][0]
ENDS = ("current", "failed", "inProgress")
Condition = dict[str, str]


def _condition(kind: str, status: str = "True") -> Condition:
    moment = "2026-01-01T00:00:00Z"
    return {"type": kind, "status": status, "reason": kind, "message": "", "lastTransitionTime": moment}


def test_what_kustomize_makes_is_accepted_under_a_new_name(plane, api, namespace) -> None:
    (made,) = documents(plane.kubectl("kustomize", str(GITOPS / "kustomize")))
    assert made["metadata"] == {
        "name": "support-sft-v1",
        "namespace": "team",
        "labels": {"app.kubernetes.io/part-of": "support"},
    }
    verdict = server_verdict(api, {**made, "metadata": {"name": made["metadata"]["name"]}}, namespace)
    assert verdict.accepted, verdict.refusals


@pytest.fixture(scope="module")
def judged(api) -> Iterator[str]:
    """A namespace where the API server refuses a status for which an expression holds, by the expression's name."""
    where = api.post("/api/v1/namespaces", {"metadata": {"generateName": "flux-"}}).must()["metadata"]["name"]
    rules = {"apiGroups": ["finetune.dev"], "apiVersions": ["*"], "operations": ["UPDATE"]}
    spec = {
        "matchConstraints": {"resourceRules": [{**rules, "resources": ["finetunejobs/status"]}]},
        "validations": [{"expression": f"!({_rooted(EXPRESSIONS[name])})", "message": name} for name in ENDS],
    }
    only = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": where}}}
    binding = {"policyName": where, "validationActions": ["Deny"], "matchResources": only}
    api.post(POLICIES, {"metadata": {"name": where}, "spec": spec}).must()
    api.post(BINDINGS, {"metadata": {"name": where}, "spec": binding}).must()
    path = f"{collection(job(), where)}/judged"
    api.post(collection(job(), where), job("judged")).must()
    wait_for(lambda: _holding(api, path, [_condition("Accepted")]), "the policy to be in force")
    yield path
    api.delete(f"{BINDINGS}/{where}")
    api.delete(f"{POLICIES}/{where}")
    api.delete(f"/api/v1/namespaces/{where}")


def _rooted(expression: str) -> str:
    """Flux's expressions see the object's fields as variables, an admission policy sees the object."""
    return re.sub(r"\bstatus\.conditions", "object.status.conditions", expression)


def _holding(api: Api, path: str, conditions: list[Condition]) -> list[str]:
    """The expressions that hold for a job with these conditions."""
    answer = api.patch(f"{path}/status?dryRun=All", {"status": {"conditions": conditions}})
    return [name for name in ENDS if f": {name}" in answer.message]


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        ([], "inProgress"),
        ([_condition("Accepted"), _condition("Running")], "inProgress"),
        ([_condition("Accepted", "False"), _condition("Suspended")], "inProgress"),
        ([_condition("Complete", "False"), _condition("Failed", "False")], "inProgress"),
        ([_condition("Running", "False"), _condition("Complete")], "current"),
        ([_condition("Failed"), _condition("Stalled")], "failed"),
    ],
)
def test_flux_knows_how_a_job_stands(api, judged, conditions, expected) -> None:
    assert _holding(api, judged, conditions) == [expected]


def test_the_expressions_are_for_our_kind() -> None:
    assert (EXPRESSIONS["apiVersion"], EXPRESSIONS["kind"]) == ("finetune.dev/v1alpha1", "FineTuneJob")
    assert set(EXPRESSIONS) == {"apiVersion", "kind", *ENDS}


def test_every_folder_is_tested() -> None:
    assert sorted(path.name for path in GITOPS.iterdir()) == ["argocd", "flux", "kustomize"]
