"""The trainer's configuration: complete for a trainer of today, and read by the one that was released before."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given

from builders import NOW_TEXT, job_manifest, make_runtime
from finetune_api.job import FineTuneJob, job_from
from finetune_api.status import Resolved, ResolvedModel, ResolvedRuntime
from finetune_api.trainer import TrainerConfig
from finetune_operator.plan.trainer_config import start_of, trainer_config
from previous import as_previous
from specs import bases, edits

DEFAULTED = {
    "runtime": "gpu",
    "data": {"overlong": "Drop", "extraColumns": "Reject", "duplicates": "Warn"},
    "hyperparameters": {"nEpochs": 1, "packing": True, "seed": 42, "lrScheduler": {"type": "Cosine"}},
    "evaluation": {"nEvals": 0},
    "checkpointing": {"nCheckpoints": 1, "recoveryPeriodSeconds": 600},
    "trainingType": {"type": "LoRA"},
}
"""What the API server writes into a spec that names none of it."""


def config(**spec: Any) -> TrainerConfig:
    """The configuration of a started job with this spec."""
    return config_of(job_from(job_manifest(**spec)))


def config_of(job: FineTuneJob, **runtime: Any) -> TrainerConfig:
    """The configuration of a job as if it had started, on a runtime with these fields."""
    found = make_runtime(**runtime)
    resolved = Resolved(
        runtime=ResolvedRuntime(name="gpu", generation=1, spec=found.spec.to_json()),
        model=ResolvedModel(source="pvc://finetune-weights/tiny"),
        lora_rank=16,
    )
    return trainer_config(job, found.spec, resolved, "team/tiny-6f1c2b3a")


def text(made: TrainerConfig) -> str:
    """As it stands in the pod's annotation."""
    return json.dumps(made.to_json())


@pytest.mark.parametrize(
    "spec",
    [
        {},
        DEFAULTED,
        {"trainingMethod": {"type": "DPO", "dpo": {"beta": 0.3}}, "hyperparameters": {"batchSize": 8}},
        {"trainingType": {"type": "Full"}, "validationFile": "configmap://rows/eval.jsonl"},
    ],
    ids=["plain", "defaults written out", "dpo", "full"],
)
def test_a_plain_job_runs_in_the_previous_trainer(spec) -> None:
    made = config(**spec)
    (answer,) = as_previous("finetune_api.trainer", "TrainerConfig", [text(made)])
    now = made.model_dump(mode="json")
    assert _shared(answer["read"], now) == _shared(now, answer["read"]), "a default has changed its meaning"


def test_what_the_previous_trainer_does_not_know_it_refuses_by_name() -> None:
    """Never does it train as if the field were not there: it exits with 10, and the job fails with the sentence."""
    made = config(data={"overlong": "Fail"})
    (answer,) = as_previous("finetune_api.trainer", "TrainerConfig", [text(made)])
    assert answer["refused"] == [["data", "extra_forbidden"]]


def test_the_runtime_tells_the_memory_of_its_gpus_and_what_the_model_costs() -> None:
    model = {"name": "Qwen/Qwen3-0.6B", "source": "hf://Qwen/Qwen3-0.6B", "pricePerMillionTokens": 0.5}
    made = config_of(job_from(job_manifest()), gpuMemory="80Gi", models=[model])
    assert (made.gpu_memory_bytes, made.price_per_million_tokens) == (80 * 1024**3, 0.5)
    assert not {"gpuMemoryBytes", "pricePerMillionTokens"} & config().to_json().keys(), "an older trainer knows neither"


@given(edits(bases()[1]))
def test_nothing_is_lost_by_leaving_defaults_out(manifest) -> None:
    try:
        job = job_from({**manifest, "metadata": {**manifest["metadata"], "uid": "u", "creationTimestamp": NOW_TEXT}})
    except ValueError:
        return
    made = config_of(job)
    assert TrainerConfig.model_validate_json(text(made)) == made


def _shared(values: Any, others: Any) -> Any:
    """The values of the fields that both have."""
    if not isinstance(values, dict) or not isinstance(others, dict):
        return values
    return {key: _shared(value, others[key]) for key, value in values.items() if key in others}


def test_redirects_are_held_to_the_hosts_of_the_runtime_as_they_are_for_the_namespace() -> None:
    access = {"httpsHosts": ["data.example", "{namespace}.example"]}
    made = config_of(job_from(job_manifest(trainingFile="https://data.example/t.jsonl")), access=access)
    assert made.https_hosts == ("data.example", "team.example")
    plain = config_of(job_from(job_manifest()), access=access)
    assert plain.https_hosts == (), "so that an older trainer takes the job"


def test_a_cache_is_told_of_only_where_there_is_one() -> None:
    job = job_from(job_manifest())
    assert config_of(job, cache={"uri": "pvc://finetune-cache"}).shared_cache
    assert "sharedCache" not in config_of(job).to_json()


def test_a_model_is_pinned_to_its_commit_and_one_of_a_store_is_not_renamed() -> None:
    assert start_of(ResolvedModel(source="hf://org/tiny", revision="abc")).model == "hf://org/tiny@abc"
    assert start_of(ResolvedModel(source="s3://bucket/tiny", revision="abc")).model == "s3://bucket/tiny"


def test_an_output_in_a_store_mounts_nothing_and_its_repository_goes_along():
    uri, token = "s3://models/team/support", {"name": "finetune-hf", "key": "token"}
    asked = config(output={"uri": uri, "hfRepo": "me/support-dpo"}, hfTokenSecretRef=token)
    assert (asked.output_uri, asked.hf_repo) == (uri, "me/support-dpo")
    assert all(volume.startswith(("pvc://finetune-data", "pvc://finetune-weights")) for volume in asked.mounts)
    assert "hfRepo" not in config().to_json(), "a trainer that does not know it need not"
