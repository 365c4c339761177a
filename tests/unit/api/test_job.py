"""FineTuneJob: defaults, and what its fields take."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from finetune_api.job import MUTABLE_FIELDS, JobSpec, job_from
from manifests import job


def test_defaults() -> None:
    spec = job_from(job()).spec
    assert (spec.training_method.type, spec.training_type.type) == ("SFT", "LoRA")
    assert spec.hyperparameters.learning_rate == 1e-5
    assert spec.hyperparameters.batch_size is None
    assert spec.checkpointing.n_checkpoints == 1
    assert spec.backoff_limit == 3
    assert spec.output is None
    assert spec.resources is None


@pytest.mark.parametrize("value", ["max", 1, 65536, 8.0])
def test_batch_sizes(value) -> None:
    assert job_from(job(hyperparameters={"batchSize": value})).spec.hyperparameters.batch_size == value


@pytest.mark.parametrize("value", [0, -1, 65537, "Max", "8", "", 8.5, True, [], 2**63])
def test_what_is_no_batch_size(value) -> None:
    with pytest.raises(ValidationError, match='batchSize must be "max" or an integer from 1 to 65536'):
        job_from(job(hyperparameters={"batchSize": value}))


@pytest.mark.parametrize(("field", "value"), [("cpu", 1), ("cpu", "500m"), ("cpu", "1.5"), ("memory", "64Gi")])
def test_quantities(field, value) -> None:
    resources = job_from(job(resources={field: value})).spec.resources
    assert getattr(resources, field) == value


@pytest.mark.parametrize(("field", "value"), [("cpu", 0), ("cpu", "0"), ("cpu", "1Gi"), ("memory", "64 Gi")])
def test_what_is_no_quantity(field, value) -> None:
    with pytest.raises(ValidationError, match=f"{field} must be a quantity above 0"):
        job_from(job(resources={field: value}))


def test_an_empty_block_of_another_method_is_not_set() -> None:
    assert job_from(job(trainingMethod={"type": "SFT", "dpo": {}})).spec.training_method.type == "SFT"
    assert job_from(job(trainingType={"type": "Full", "lora": {"rank": None}})).spec.training_type.type == "Full"


def test_metadata_that_is_not_ours_passes_by() -> None:
    manifest = job()
    manifest["metadata"] |= {"annotations": {"a": "b"}, "managedFields": [], "labels": {"team": "a"}}
    assert job_from(manifest).metadata.labels == {"team": "a"}


def test_what_may_change_after_the_start_are_fields() -> None:
    assert set(JobSpec.model_fields) >= MUTABLE_FIELDS
    assert {JobSpec.model_fields[name].alias for name in MUTABLE_FIELDS} == {
        "suspend",
        "cancel",
        "activeDeadlineSeconds",
        "ttlSecondsAfterFinished",
    }
