"""Several nodes: the Job, the names of its pods, and an environment in which torchrun itself finds its arguments."""

from __future__ import annotations

from typing import Any

import pytest
from torch.distributed.run import config_from_args, get_args_parser

from finetune_api.trainer import Stage, TrainerConfig
from pods import child, pod_of

NODES = 4
LIMITS = {"limits": {"maxNodes": NODES}}


def several(stage: Stage = Stage.TRAIN, **spec: Any) -> dict[str, Any]:
    """The Job of a training on several nodes."""
    return child(stage, runtime=LIMITS, **{"resources": {"nodes": NODES}, **spec})


def variables(container: dict[str, Any]) -> dict[str, str]:
    """torchrun's own variables, those without a fixed value left out."""
    return {e["name"]: e["value"] for e in container["env"] if e["name"].startswith("PET_") and "value" in e}


def test_the_job_has_a_pod_for_each_node_and_counts_what_one_of_them_loses():
    spec = several(backoffLimit=2)["spec"]
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", NODES, NODES)
    assert spec["backoffLimit"] == (2 + 1) * NODES - 1
    assert spec["successPolicy"] == {"rules": [{"succeededIndexes": "0"}]}
    assert spec["podReplacementPolicy"] == "Failed"
    assert [rule["action"] for rule in spec["podFailurePolicy"]["rules"]] == ["Ignore", "Ignore", "FailJob"]


@pytest.mark.parametrize(("stage", "spec"), [(Stage.PREPARE, {}), (Stage.TRAIN, {"resources": {"nodes": 1}})])
def test_data_is_prepared_by_one_pod_and_one_node_needs_no_meeting(stage, spec):
    manifest = several(stage, backoffLimit=2, **spec)
    pod, container = pod_of(manifest)
    assert (manifest["spec"]["completions"], manifest["spec"]["backoffLimit"]) == (1, 2)
    assert not {"completionMode", "successPolicy"} & manifest["spec"].keys()
    assert "subdomain" not in pod
    assert not [e for e in container["env"] if e["name"].startswith("PET_")]


@pytest.mark.parametrize(("gpus", "processes"), [(0, 1), (1, 1), (8, 8)])
def test_plain_torchrun_finds_all_its_arguments_in_the_environment(gpus, processes, monkeypatch):
    pod, container = pod_of(several(resources={"nodes": NODES, "gpusPerNode": gpus}))
    (rank,) = [e for e in container["env"] if e["name"] == "PET_NODE_RANK"]
    assert rank["valueFrom"] == {
        "fieldRef": {"fieldPath": "metadata.annotations['batch.kubernetes.io/job-completion-index']"}
    }
    for name, value in {**variables(container), "PET_NODE_RANK": "3"}.items():
        monkeypatch.setenv(name, value)
    config, _, _ = config_from_args(get_args_parser().parse_args(["script.py"]))
    assert (config.min_nodes, config.max_nodes, config.nproc_per_node) == (NODES, NODES, processes)
    assert (config.rdzv_backend, config.rdzv_endpoint) == ("static", f"tune-train-0.{pod['subdomain']}:29500")
    assert config.rdzv_configs["rank"] == 3
    assert int(config.rdzv_configs["timeout"]) > 3600
    assert config.max_restarts == 0


def test_the_platforms_environment_cannot_replace_the_meeting():
    template = {"env": [{"name": "PET_MASTER_ADDR", "value": "elsewhere"}, {"name": "NCCL_DEBUG", "value": "INFO"}]}
    runtime = {**LIMITS, "podTemplate": template}
    _, container = pod_of(child(runtime=runtime, resources={"nodes": NODES}))
    given = [e["value"] for e in container["env"] if e["name"] == "PET_MASTER_ADDR"]
    assert given == ["tune-train-0.tune-train"]
    assert {"name": "NCCL_DEBUG", "value": "INFO"} in container["env"]


def test_the_longest_name_still_names_a_host():
    longest = "a" * 52
    first = f"{longest}-train-{64 - 1}"
    assert len(first) <= 63
    assert len(f"{longest}-train") <= 63


def test_the_trainer_is_told_how_many_nodes_there_are():
    for stage in Stage:
        annotations = several(stage)["spec"]["template"]["metadata"]["annotations"]
        assert TrainerConfig.model_validate_json(annotations["finetune.dev/trainer-config"]).nodes == NODES
