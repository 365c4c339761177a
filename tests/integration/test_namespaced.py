"""An installation with rights in some namespaces alone, upgraded from the previous release: their jobs run, all others
are not even seen."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator

import pytest

import previous
from kubelet import Kubelet, wait_for
from manifests import documents
from releases import Release, asked
from world import World


@pytest.fixture
def kubelet(own_plane) -> Iterator[Kubelet]:
    """Runs the pods."""
    with Kubelet(own_plane.api()) as running:
        yield running


def test_jobs_of_the_listed_namespaces_run_and_no_others(own_plane, own_namespaces, kubelet, tmp_path) -> None:
    first, second, foreign = own_namespaces
    api = own_plane.api()
    release = Release(own_plane, tmp_path, "few", "few-system", {"settings": {"namespaces": [first, second]}})
    release.install(previous.CHART)
    own_plane.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=60s")
    assert "ClusterRole/few-finetune-operator" in _roles_bound(release, first), "as the previous release has it"
    notes = release.install()
    assert _roles_bound(release, first) == "Role/few-finetune-operator-jobs"
    assert not own_plane.run("kubectl", "get", "clusterrole", "few-finetune-operator").stdout
    own_plane.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=60s")
    own_plane.kubectl("apply", "--filename", "-", stdin=_runtime_of(notes))
    operator, url = release.operator()
    worlds = [World(own_plane, api, kubelet, operator, name) for name in own_namespaces]
    for world in worlds:
        world.prepare()
        world.apply("tune")
    operator.start()
    try:
        for world in worlds[:2]:
            world.wait("tune", "Complete", reason="Succeeded", seconds=60)
        wait_for(lambda: asked(f"{url}/healthz")[0] == 200, "a healthy operator")
        assert worlds[2].status("tune") == {}
        assert worlds[2].children("tune") == {}
    finally:
        assert operator.stop() == 0
    log = operator.log.read_text()
    assert not re.search("forbidden|Traceback|40[13]", log), log
    _rights_end_at_the_border(release, first, foreign)
    _uninstalled(release)
    api.close()


def _roles_bound(release: Release, namespace: str) -> str:
    """Kind and name of every role that the release binds in a namespace."""
    what = "jsonpath={range .items[*]}{.roleRef.kind}/{.roleRef.name}{end}"
    return release.plane.kubectl("get", "rolebindings", "--namespace", namespace, "--output", what)


def _runtime_of(notes: str) -> str:
    """The manifest that the notes ask an administrator to apply."""
    block = notes[notes.index("  apiVersion: finetune.dev") :].split("\n\n", 1)[0]
    (manifest,) = documents(textwrap.dedent(block))
    assert manifest["kind"] == "FineTuneRuntime"
    return textwrap.dedent(block)


def _rights_end_at_the_border(release: Release, listed: str, foreign: str) -> None:
    account = f"system:serviceaccount:{release.namespace}:{release.full_name}"
    for verb, what, where, may in [
        ("list", "pods", listed, True),
        ("create", "jobs.batch", listed, True),
        ("list", "pods", foreign, False),
        ("get", "finetunejobs.finetune.dev", foreign, False),
        ("create", "jobs.batch", foreign, False),
        ("create", "jobs.batch", release.namespace, False),
        ("get", "leases.coordination.k8s.io", release.namespace, False),
        ("list", "finetuneruntimes.finetune.dev", foreign, True),
        ("create", "finetuneruntimes.finetune.dev", listed, False),
        ("create", "persistentvolumeclaims", listed, False),
        ("list", "workloads.kueue.x-k8s.io", listed, False),
    ]:
        can = release.plane.run("kubectl", "auth", "can-i", verb, what, "--as", account, "--namespace", where)
        assert can.stdout.strip() == ("yes" if may else "no"), (verb, what, where)


def _uninstalled(release: Release) -> None:
    """Roles in other namespaces go as well."""
    release.helm("uninstall", release.name)
    left = release.plane.kubectl("get", "roles,rolebindings,clusterroles,clusterrolebindings", "-A", "-o", "name")
    assert f"/{release.name}-" not in left
