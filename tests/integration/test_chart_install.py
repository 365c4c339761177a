"""The chart on a cluster that has never seen our kinds: installed, upgraded, uninstalled, again and again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from apiserver import ControlPlane, control_plane
from manifests import ROOT, job

CHART = str(ROOT / "charts" / "finetune-operator")
SYSTEM = "finetune-system"
TIMES = 5


@pytest.fixture
def fresh(tmp_path_factory) -> Iterator[ControlPlane]:
    """A cluster of its own, without our kinds."""
    with control_plane(tmp_path_factory.mktemp("fresh")) as plane:
        yield plane


def helm(plane: ControlPlane, *arguments: str) -> str:
    """A helm that must succeed."""
    done = plane.run("helm", *arguments, "--namespace", SYSTEM)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_installed_again_and_again(fresh) -> None:
    notes = [helm(fresh, "upgrade", "--install", "finetune-operator", CHART, "--create-namespace")]
    fresh.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=30s")
    fresh.kubectl("apply", "--filename", "-", stdin=json.dumps(job("kept")))
    for number in range(1, TIMES):
        notes.append(
            helm(fresh, "upgrade", "--install", "finetune-operator", CHART, "--set", f"settings.workers={number}")
        )
    assert all("rollout status deployment/finetune-operator" in text for text in notes)
    settings = fresh.kubectl("get", "configmap", "finetune-operator", "-n", SYSTEM, "-o", "jsonpath={.data}")
    assert "workers: 4" in settings
    assert "kept" in fresh.kubectl("get", "ftj")
    _uninstalled_and_installed(fresh)


def _uninstalled_and_installed(plane: ControlPlane) -> None:
    """Uninstalling leaves the kinds and the jobs, so installing finds them; without keep it takes them away."""
    for _ in range(TIMES):
        helm(plane, "uninstall", "finetune-operator")
        assert "kept" in plane.kubectl("get", "ftj")
        helm(plane, "install", "finetune-operator", CHART)
    helm(plane, "upgrade", "finetune-operator", CHART, "--set", "crds.keep=false")
    helm(plane, "uninstall", "finetune-operator", "--wait")
    assert "finetune" not in plane.kubectl("get", "crd", "--output", "name")


def test_the_operators_pod_meets_the_restricted_standard(plane, namespace, api) -> None:
    """The API server admits the very pod of the Deployment where nothing less is allowed."""
    restricted = {"pod-security.kubernetes.io/enforce": "restricted"}
    api.patch(f"/api/v1/namespaces/{namespace}", {"metadata": {"labels": restricted}}).must()
    api.post(f"/api/v1/namespaces/{namespace}/serviceaccounts", {"metadata": {"name": "finetune-operator"}}).must()
    rendered = plane.run(
        "helm",
        "template",
        "finetune-operator",
        CHART,
        "--kube-version",
        "1.34.0",
        "--show-only",
        "templates/deployment.yaml",
    )
    template = _json(plane, rendered.stdout)["spec"]["template"]
    pod = {"metadata": {"name": "operator", "labels": template["metadata"]["labels"]}, "spec": template["spec"]}
    api.post(f"/api/v1/namespaces/{namespace}/pods", pod).must()
    del pod["spec"]["containers"][0]["securityContext"]["capabilities"]
    refused = api.post(f"/api/v1/namespaces/{namespace}/pods", {**pod, "metadata": {"name": "worse"}})
    assert "violates PodSecurity" in refused.message


def test_who_may_edit_a_namespace_may_edit_its_jobs(plane, api, namespace) -> None:
    helm(plane, "upgrade", "--install", "roles", CHART, "--create-namespace", "--set", "crds.enabled=false")
    try:
        for role, verb, what, may in [
            ("edit", "create", "finetunejobs", True),
            ("edit", "patch", "finetunejobs --subresource=status", False),
            ("edit", "create", "finetuneruntimes", False),
            ("view", "get", "finetunejobs", True),
            ("view", "create", "finetunejobs", False),
        ]:
            binding = {
                "metadata": {"generateName": "user-"},
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
                "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": f"a-{role}"}],
            }
            api.post(f"/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/rolebindings", binding).must()
            can = plane.run("kubectl", "auth", "can-i", verb, *what.split(), "--as", f"a-{role}", "-n", namespace)
            assert can.stdout.strip() == ("yes" if may else "no"), (role, verb, what)
    finally:
        helm(plane, "uninstall", "roles")


def _json(plane: ControlPlane, manifest: str) -> dict[str, Any]:
    text = plane.kubectl("create", "--dry-run=client", "--output", "json", "--filename", "-", stdin=manifest)
    return dict(json.loads(text))
