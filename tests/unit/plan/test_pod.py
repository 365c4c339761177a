"""The pod is what the restricted Pod Security Standard asks for, whatever the runtime adds."""

from __future__ import annotations

import json

import pytest

from builders import JOB_UID
from finetune_api import names
from finetune_api.trainer import Stage, TrainerConfig
from pods import child, pod_of


@pytest.mark.parametrize("stage", list(Stage))
def test_the_pod_is_restricted(stage):
    spec, container = pod_of(child(stage))
    assert spec["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": 65532,
        "runAsGroup": 65532,
        "fsGroup": 65532,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "runAsNonRoot": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert spec["automountServiceAccountToken"] is False
    assert spec["enableServiceLinks"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC", "initContainers"} & spec.keys()
    assert all({"hostPath", "secret", "projected"}.isdisjoint(volume) for volume in spec["volumes"])


def test_what_the_runtime_adds_never_replaces_what_is_fixed():
    template = {
        "labels": {names.MANAGED_BY_LABEL: "me", "team": "a"},
        "annotations": {names.CONFIG_ANNOTATION: "{}", "note": "b"},
        "env": [
            {"name": "HOME", "value": "/root"},
            {"name": names.POD_UID_ENV, "value": "x"},
            {"name": "HTTPS_PROXY", "value": "p"},
        ],
        "envFrom": [{"configMapRef": {"name": "proxy"}}],
        "nodeSelector": {"pool": "gpu"},
        "tolerations": [{"operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
        "priorityClassName": "high",
        "schedulerName": "other",
        "runtimeClassName": "nvidia",
        "volumes": [{"name": "more", "emptyDir": {}}],
        "volumeMounts": [{"name": "more", "mountPath": "/more"}],
    }
    manifest = child(runtime={"podTemplate": template})
    spec, container = pod_of(manifest)
    metadata = manifest["spec"]["template"]["metadata"]
    assert metadata["labels"][names.MANAGED_BY_LABEL] == names.MANAGED_BY
    assert metadata["labels"]["team"] == "a"
    assert json.loads(metadata["annotations"][names.CONFIG_ANNOTATION])["job"]["uid"] == JOB_UID
    assert metadata["annotations"]["note"] == "b"
    environment = {e["name"]: e for e in container["env"]}
    assert len(environment) == len(container["env"])
    assert environment["HOME"]["value"] == names.HOME_DIRECTORY
    assert environment[names.POD_UID_ENV]["valueFrom"] == {"fieldRef": {"fieldPath": "metadata.uid"}}
    assert environment["HTTPS_PROXY"]["value"] == "p"
    assert container["envFrom"] == [{"configMapRef": {"name": "proxy"}}]
    assert spec["nodeSelector"] == {"pool": "gpu"}
    assert (spec["priorityClassName"], spec["schedulerName"], spec["runtimeClassName"]) == ("high", "other", "nvidia")
    assert {"name": "more", "mountPath": "/more"} in container["volumeMounts"]
    assert spec["securityContext"]["runAsNonRoot"] is True


def test_it_computes_with_as_many_threads_as_it_asks_for_cpus():
    _, container = pod_of(child())
    (threads,) = [e["valueFrom"] for e in container["env"] if e["name"] == "OMP_NUM_THREADS"]
    assert threads == {"resourceFieldRef": {"containerName": container["name"], "resource": "requests.cpu"}}


def test_only_the_output_can_be_written():
    spec, container = pod_of(child(validationFile="configmap://rows/eval.jsonl"))
    sources = {v["name"]: v for v in spec["volumes"]}
    mounts = {m["mountPath"]: m for m in container["volumeMounts"]}
    assert set(mounts) == {
        "/etc/finetune",
        "/tmp",
        names.HOME_DIRECTORY,
        "/dev/shm",
        "/mnt/claims/finetune-data",
        "/mnt/claims/finetune-models",
        "/mnt/claims/finetune-weights",
        "/mnt/configmaps/rows",
    }
    writable = {path for path, mount in mounts.items() if not mount.get("readOnly")}
    assert writable == {"/tmp", names.HOME_DIRECTORY, "/dev/shm", "/mnt/claims/finetune-models"}
    rows = sources[mounts["/mnt/configmaps/rows"]["name"]]
    assert rows["configMap"] == {"name": "rows", "items": [{"key": "eval.jsonl", "path": "eval.jsonl"}]}
    data = sources[mounts["/mnt/claims/finetune-data"]["name"]]
    assert data["persistentVolumeClaim"] == {"claimName": "finetune-data", "readOnly": True}
    shared = sources[mounts["/dev/shm"]["name"]]
    assert shared["emptyDir"] == {"medium": "Memory", "sizeLimit": "64Mi"}


def test_a_claim_that_is_read_and_written_is_mounted_once_and_writable():
    spec, container = pod_of(child(trainingFile="pvc://finetune-models/train.jsonl"))
    paths = [m["mountPath"] for m in container["volumeMounts"]]
    assert paths.count("/mnt/claims/finetune-models") == 1
    claims = [v["persistentVolumeClaim"] for v in spec["volumes"] if "persistentVolumeClaim" in v]
    assert {"claimName": "finetune-models"} in claims


@pytest.mark.parametrize("uri", ["s3://bucket/tiny", "gs://bucket/tiny", "https://host/tiny"])
def test_nothing_is_mounted_for_what_is_downloaded(uri):
    _, plain = pod_of(child())
    _, container = pod_of(child(trainingFile=uri, validationFile=uri))
    gone = {m["mountPath"] for m in plain["volumeMounts"]} - {m["mountPath"] for m in container["volumeMounts"]}
    assert gone == {"/mnt/claims/finetune-data"}
    assert len(plain["volumeMounts"]) == len(container["volumeMounts"]) + 1


@pytest.mark.parametrize(("stage", "read_only"), [(Stage.PREPARE, None), (Stage.TRAIN, True)])
def test_the_cache_of_the_runtime_is_written_in_preparing_alone(stage, read_only):
    _, container = pod_of(child(stage, runtime={"cache": {"uri": "pvc://finetune-cache/hub"}}))
    (mount,) = [m for m in container["volumeMounts"] if m["mountPath"] == "/mnt/claims/finetune-cache"]
    assert mount.get("readOnly") is read_only
    environment = {e["name"]: e.get("value") for e in container["env"]}
    assert environment["HF_HUB_CACHE"] == "/mnt/claims/finetune-cache/hub"
    assert environment["HF_HOME"].startswith(names.HOME_DIRECTORY), "the token and a model's code stay with the pod"


def test_without_a_cache_the_hub_has_that_of_the_pod():
    _, container = pod_of(child())
    assert "HF_HUB_CACHE" not in {e["name"] for e in container["env"]}


def test_memory_is_limited_cpu_is_not_and_preparing_takes_no_gpu():
    size = {"cpu": "4", "memory": "8Gi", "gpusPerNode": 1}
    _, training = pod_of(child(Stage.TRAIN, resources=size))
    assert training["resources"] == {
        "requests": {"cpu": "4", "memory": "8Gi", "nvidia.com/gpu": "1"},
        "limits": {"memory": "8Gi", "nvidia.com/gpu": "1"},
    }
    _, preparing = pod_of(child(Stage.PREPARE, resources=size))
    assert preparing["resources"] == {"requests": {"cpu": "4", "memory": "8Gi"}, "limits": {"memory": "8Gi"}}


def test_the_runtime_says_what_its_gpus_are_called_and_how_its_image_is_pulled():
    runtime = {"gpuResourceName": "amd.com/gpu", "imagePullSecrets": [{"name": "registry"}]}
    spec, container = pod_of(child(Stage.TRAIN, resources={"gpusPerNode": 1}, runtime=runtime))
    assert container["resources"]["limits"] == {"memory": "2Gi", "amd.com/gpu": "1"}
    assert spec["imagePullSecrets"] == [{"name": "registry"}]
    assert "imagePullSecrets" not in pod_of(child())[0]


@pytest.mark.parametrize(("stage", "program"), [(Stage.PREPARE, "prepare"), (Stage.TRAIN, "train")])
def test_the_container_runs_the_program_on_the_mounted_configuration(stage, program):
    spec, container = pod_of(child(stage))
    assert container["args"] == [program, "/etc/finetune/config.json"]
    assert "command" not in container
    assert container["ports"] == [{"name": "progress", "containerPort": 8080}]
    assert container["terminationMessagePath"] == names.TERMINATION_LOG
    (item,) = next(v for v in spec["volumes"] if v["name"] == "finetune-config")["downwardAPI"]["items"]
    assert item["path"] == "config.json"
    assert names.CONFIG_ANNOTATION in item["fieldRef"]["fieldPath"]


def test_the_hub_is_left_alone_when_the_runtime_is_offline():
    _, online = pod_of(child())
    _, offline = pod_of(child(runtime={"offline": True}))
    variable = {"name": "HF_HUB_OFFLINE", "value": "1"}
    assert variable in offline["env"]
    assert variable not in online["env"]


def test_the_job_retries_what_is_not_the_users_and_never_runs_two_pods():
    manifest = child(Stage.TRAIN, backoffLimit=2, runtime={"terminationGracePeriodSeconds": 40})
    spec = manifest["spec"]
    assert (spec["backoffLimit"], spec["podReplacementPolicy"]) == (2, "Failed")
    assert spec["template"]["spec"]["restartPolicy"] == "Never"
    assert spec["template"]["spec"]["terminationGracePeriodSeconds"] == 40
    assert [rule["action"] for rule in spec["podFailurePolicy"]["rules"]] == ["Ignore", "Ignore", "FailJob"]
    exits = [rule["onExitCodes"] for rule in spec["podFailurePolicy"]["rules"][1:]]
    assert [e["values"] for e in exits] == [[3, 4], list(range(10, 20))]
    assert all(e["containerName"] == "trainer" for e in exits)


def test_the_children_belong_to_the_job():
    metadata = child(Stage.PREPARE)["metadata"]
    assert metadata["name"] == "tune-prepare"
    assert metadata["labels"][names.JOB_UID_LABEL] == JOB_UID
    (owner,) = metadata["ownerReferences"]
    assert (owner["uid"], owner["controller"], owner["blockOwnerDeletion"]) == (JOB_UID, True, True)


def test_the_largest_configuration_fits_an_annotation():
    long = "a" * 100
    uri = "pvc://finetune-data/" + "/".join([long] * 9)
    manifest = child(
        trainingFile=uri,
        validationFile=uri,
        output={"uri": "pvc://finetune-models/" + "/".join([long] * 9)},
        trainingType={"lora": {"trainableModules": [f"{i:0128}" for i in range(64)]}},
    )
    text = manifest["spec"]["template"]["metadata"]["annotations"][names.CONFIG_ANNOTATION]
    assert len(text.encode()) < 64 * 1024
    assert TrainerConfig.model_validate_json(text).training_file == uri


MINE = {"name": "finetune-mine", "key": "token"}


@pytest.mark.parametrize("stage", list(Stage))
@pytest.mark.parametrize(
    ("variable", "spec"),
    [
        ("HF_TOKEN", {"hfTokenSecretRef": MINE}),
        ("WANDB_API_KEY", {"tracking": {"wandb": {"apiKeySecretRef": MINE}}}),
        (
            "MLFLOW_TRACKING_TOKEN",
            {"tracking": {"mlflow": {"trackingUri": "https://mlflow.example.com", "tokenSecretRef": MINE}}},
        ),
    ],
)
def test_both_stages_get_the_token_by_reference_and_cannot_start_without_it(stage, variable, spec):
    theirs = {"podTemplate": {"env": [{"name": variable, "value": "the platform's"}]}}
    manifest = child(stage, runtime=theirs, **spec)
    _, container = pod_of(manifest)
    given = [entry for entry in container["env"] if entry["name"] == variable]
    assert given == [{"name": variable, "valueFrom": {"secretKeyRef": MINE}}]
    assert "finetune-mine" not in manifest["spec"]["template"]["metadata"]["annotations"][names.CONFIG_ANNOTATION]


def test_a_job_without_a_token_keeps_that_of_the_platform():
    theirs = {"podTemplate": {"env": [{"name": "HF_TOKEN", "value": "the platform's"}]}}
    _, container = pod_of(child(runtime=theirs))
    assert {"name": "HF_TOKEN", "value": "the platform's"} in container["env"]


@pytest.mark.parametrize("allowed", [True, False])
def test_only_the_runtime_says_whether_code_of_a_model_is_run(allowed):
    manifest = child(runtime={"allowRemoteCode": True} if allowed else {})
    text = manifest["spec"]["template"]["metadata"]["annotations"][names.CONFIG_ANNOTATION]
    assert TrainerConfig.model_validate_json(text).allow_remote_code is allowed
