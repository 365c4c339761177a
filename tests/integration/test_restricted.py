"""All pods meet the restricted Pod Security Standard, as the API server enforces it, whatever a runtime adds."""

from __future__ import annotations

from typing import Any

from builders import JOB_UID, make_job, make_runtime
from finetune_api.names import JOB_UID_LABEL
from finetune_api.status import Resolved, ResolvedModel, ResolvedRuntime
from finetune_api.trainer import Stage
from finetune_operator.plan.claims import claim_template
from finetune_operator.plan.network import network_policy, train_service
from finetune_operator.plan.objects import child_manifest
from finetune_operator.plan.restricted import SOURCES, template_refused
from finetune_operator.plan.trainer_config import trainer_config
from finetune_operator.settings import NetworkPolicySettings, OperatorPods, Settings
from judges import collection
from manifests import contains, runtime

RUNTIMES = collection(runtime(), "")
CLAIM: dict[str, Any] = {
    "labels": {"team": "ml"},
    "spec": {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "5Gi"}}},
}
ROWS = "configmap://finetune-rows/train.jsonl"


def made_by_plan() -> list[tuple[str, dict[str, Any]]]:
    """Everything that a plan makes, by its plural, with all that a job and a runtime may ask for."""
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
        claimTemplate=CLAIM,
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
    return [
        ("jobs", child_manifest(owner, Stage.PREPARE, spec, config)),
        ("jobs", child_manifest(owner, Stage.TRAIN, spec, config)),
        ("services", train_service(owner)),
        ("networkpolicies", network_policy(owner, rules)),
        ("networkpolicies", network_policy(owner, NetworkPolicySettings(enabled=True))),
        ("persistentvolumeclaims", claim),
    ]


def ephemeral() -> dict[str, Any]:
    """A volume of the pod's own."""
    spec = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
    return {"volumeClaimTemplate": {"spec": spec}}


def anti_affinity() -> dict[str, Any]:
    """Not two pods of a job on one node."""
    term = {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {JOB_UID_LABEL: JOB_UID}}}
    return {"requiredDuringSchedulingIgnoredDuringExecution": [term]}


def test_a_restricted_namespace_takes_all_that_is_made(world) -> None:
    """Every field is known, and a pod from each Job's template passes the standard by itself."""
    world.restrict()
    for kind, manifest in made_by_plan():
        manifest["metadata"]["namespace"] = world.namespace
        answer = world.api.post(f"{world.path(kind)}?dryRun=All&fieldValidation=Strict", manifest)
        assert answer.ok, answer.message
        stored = answer.body["spec"]
        assert contains(stored, manifest["spec"]), f"{kind}: the API server has changed or dropped something"
        if kind == "jobs":
            pod = {"metadata": {"name": "a", **manifest["spec"]["template"]["metadata"]}}
            pod["spec"] = manifest["spec"]["template"]["spec"]
            pods = f"{world.path('pods')}?dryRun=All&fieldValidation=Strict"
            answer = world.api.post(pods, pod)
            assert answer.ok, answer.message
            pod["spec"]["hostNetwork"] = True
            assert "violates PodSecurity" in world.api.post(pods, pod).message, "the standard is enforced"


VOLUMES: dict[str, Any] = {
    "configMap": {"name": "a"},
    "csi": {"driver": "a.b"},
    "downwardAPI": {},
    "emptyDir": {},
    "ephemeral": ephemeral(),
    "persistentVolumeClaim": {"claimName": "a"},
    "projected": {"sources": [{"secret": {"name": "a"}}]},
    "secret": {"secretName": "a"},
    "hostPath": {"path": "/"},
    "nfs": {"server": "a", "path": "/"},
    "iscsi": {"targetPortal": "a:3260", "iqn": "iqn.2026-01.a.b:c", "lun": 0},
    "fc": {"targetWWNs": ["a"], "lun": 0},
    "cephfs": {"monitors": ["a"]},
    "rbd": {"monitors": ["a"], "image": "a"},
    "glusterfs": {"endpoints": "a", "path": "a"},
    "flexVolume": {"driver": "a/b"},
    "azureFile": {"secretName": "a", "shareName": "a"},
}
UNCONFINED = "container.apparmor.security.beta.kubernetes.io/trainer"


def test_what_a_template_may_add_is_what_the_api_server_itself_counts_as_restricted(world) -> None:
    """A namespace that does not enforce the standard shall get no other pods than one that does."""
    world.restrict()
    cases = [{"volumes": [{"name": "more", kind: source}]} for kind, source in VOLUMES.items()]
    cases += [{"annotations": {UNCONFINED: value}} for value in ("runtime/default", "unconfined")]
    verdicts = {}
    for template in cases:
        labels, annotations = {"app": "a"}, template.get("annotations", {})
        pod = made_by_plan()[0][1]["spec"]["template"]
        pod["metadata"] = {"name": "a", "labels": labels, "annotations": annotations}
        pod["spec"]["volumes"] += template.get("volumes", [])
        answer = world.api.post(f"{world.path('pods')}?dryRun=All&fieldValidation=Strict", pod)
        assert answer.ok or "violates PodSecurity" in answer.message, answer.message
        ours = template_refused("gpu", make_runtime(podTemplate=template).spec)
        verdicts[str(template)] = (answer.ok, ours is None)
    assert all(theirs == ours for theirs, ours in verdicts.values()), verdicts
    assert sum(ours for _, ours in verdicts.values()) == len(SOURCES) + 1


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
