"""From the previous release to this one with a job at work, and away again: nothing is made twice, nothing is left."""

from __future__ import annotations

import dataclasses
import re
import threading

from apiserver import ControlPlane
from finetune_api.names import CONFIG_ANNOTATION
from kubelet import Behaviour, Kubelet, wait_for
from previous import CHART, WHEEL
from releases import Release
from world import PREPARED, World, progress, published, script

INSTANCE = "app.kubernetes.io/instance=finetune-operator"
NOT_LISTED = ("events", "componentstatuses", "bindings")


def test_a_job_runs_across_the_upgrade(own_plane, own_namespace, tmp_path) -> None:
    release, api = Release(own_plane, tmp_path), own_plane.api()
    release.install(CHART)
    own_plane.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=60s")
    before = _kinds(own_plane)
    old, _ = release.operator("old", package=WHEEL)
    kubelet = Kubelet(own_plane.api())
    kubelet.start()
    world = World(own_plane, api, kubelet, old, own_namespace)
    world.prepare()
    enough = threading.Event()
    training = Behaviour((progress(1), progress(2)), until=enough, word=published("across"))
    version = world.version()
    try:
        old.start()
        world.apply("across", script("across", Behaviour((PREPARED,), seconds=0.3), [training]))
        world.wait("across", "Running", seconds=60)
        wait_for(lambda: world.status("across").get("progress", {}).get("step") == 2, "progress of the old operator")
        was = world.status("across")
        pods = world.pods("train")
        annotations = pods[0]["metadata"]["annotations"]
        assert '"offline":false' in annotations[CONFIG_ANNOTATION], "only the old operator writes defaults"
        assert old.stop() == 0

        release.install()
        assert _kinds(own_plane) != before, "the kinds are this release's"
        new, _ = release.operator("new")
        world.operator = new
        new.start()
        wait_for(lambda: "Initial authentication has finished" in new.log.read_text(), "the new operator")
        world.apply("after")
        enough.set()
        for name in ("across", "after"):
            world.wait(name, "Complete", reason="Succeeded", seconds=60)
        assert world.made_since(version) == {f"{n}-{s}": 1 for n in ("across", "after") for s in ("prepare", "train")}
        now = world.status("across")
        assert [now[key] for key in ("startTime", "id", "outputName")] == [
            was[key] for key in ("startTime", "id", "outputName")
        ]
        assert now["resolved"]["runtime"]["spec"] == was["resolved"]["runtime"]["spec"]
        assert (now["restarts"], now["disruptions"]) == (0, 0)
        assert [pod["metadata"]["uid"] for pod in world.pods("train") if "across" in pod["metadata"]["name"]] == [
            pod["metadata"]["uid"] for pod in pods
        ]
        assert [checkpoint["name"] for checkpoint in now["checkpoints"]] == ["across:4"]
        assert new.stop() == 0
        assert not re.search("forbidden|Traceback", new.log.read_text())
    finally:
        enough.set()
        for each in (old, world.operator):
            if each.process is not None:
                each.kill()
        kubelet.stop()
    _uninstalled(release, world)
    api.close()


def test_replicas_come_and_go(own_plane, tmp_path) -> None:
    """From Recreate to RollingUpdate and back: each is refused where a trace of the other is left."""
    release = Release(own_plane, tmp_path, "several", "several", {"crds": {"enabled": False}})
    for values in ({}, {"replicas": 2, "leaderElection": {"enabled": True}}, {}):
        made = dataclasses.replace(release, values={**release.values, **values})
        made.install()
        spec = made.plane.kubectl(
            *("get", "deployment", "several-finetune-operator", "-n", "several"),
            *("-o", "jsonpath={.spec.replicas} {.spec.strategy.type}"),
        )
        assert spec == ("2 RollingUpdate" if values else "1 Recreate")
    release.helm("uninstall", "several")


def _kinds(plane: ControlPlane) -> str:
    return plane.kubectl("get", "crd", "finetunejobs.finetune.dev", "-o", "jsonpath={.spec}")


def _uninstalled(release: Release, world: World) -> None:
    """Of all kinds that the server knows, only what was asked to be kept is left: our two, and with them the jobs."""
    release.helm("uninstall", release.name)
    plane = release.plane
    kinds = plane.kubectl("api-resources", "--verbs=list", "--output", "name").split()
    listed = ",".join(kind for kind in kinds if kind.split(".")[0] not in NOT_LISTED)
    left = plane.kubectl("get", listed, "--all-namespaces", "--selector", INSTANCE, "--output", "name").split()
    crds = "customresourcedefinition.apiextensions.k8s.io"
    assert left == [f"{crds}/finetunejobs.finetune.dev", f"{crds}/finetuneruntimes.finetune.dev"]
    secrets = plane.kubectl("get", "secrets,configmaps", "--namespace", release.namespace, "--output", "name")
    assert "finetune" not in secrets
    assert world.status("across")["phase"] == "Completed"
