"""FineTuneRuntime: safe defaults, and which limit holds for which training."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from finetune_api.method import MethodType, TrainingKind
from finetune_api.runtime import runtime_from
from manifests import runtime

LIMITS = {
    "lora": {"maxBatchSize": 64, "maxBatchSizeDpo": 32},
    "full": {"maxBatchSize": 16, "maxBatchSizeDpo": 8},
    "maxSeqLengthSft": 4096,
    "maxSeqLengthDpo": 2048,
}


def test_the_defaults_are_safe() -> None:
    spec = runtime_from(runtime()).spec
    assert spec.default is False
    assert spec.access.claims.read == spec.access.claims.write == spec.access.config_maps == ("finetune-*",)
    assert spec.access.uri_prefixes.read == ("hf://",)
    assert spec.access.uri_prefixes.write == ()
    assert spec.service_account_name == "default"


@pytest.mark.parametrize(
    "template",
    [
        {"securityContext": {}},
        {"serviceAccountName": "admin"},
        {"hostNetwork": True},
        {"containers": []},
        {"automountServiceAccountToken": True},
    ],
)
def test_a_pod_template_cannot_touch_security(template) -> None:
    with pytest.raises(ValidationError, match="Extra inputs"):
        runtime_from(runtime(podTemplate=template))


def test_limits_are_looked_up_by_kind_and_method() -> None:
    model = runtime_from(runtime(models=[{"name": "m", "source": "org/m", "limits": LIMITS}])).spec.model_named("m")
    assert model is not None
    batches = {
        (kind, method): model.limits.of_kind(kind).max_batch(method) for kind in TrainingKind for method in MethodType
    }
    assert batches == {
        (TrainingKind.LORA, MethodType.SFT): 64,
        (TrainingKind.LORA, MethodType.DPO): 32,
        (TrainingKind.FULL, MethodType.SFT): 16,
        (TrainingKind.FULL, MethodType.DPO): 8,
    }
    assert model.limits.max_seq_length(MethodType.SFT) == 4096
    assert model.limits.max_seq_length(MethodType.DPO) == 2048


def test_a_model_that_is_not_listed() -> None:
    assert runtime_from(runtime()).spec.model_named("m") is None


def test_a_kubernetes_structure_passes_as_it_is() -> None:
    affinity = {"nodeAffinity": {"preferred": [{"weight": 1, "x": None}]}}
    spec = runtime_from(runtime(podTemplate={"affinity": affinity, "tolerations": [{"key": "a"}]})).spec
    assert spec.pod_template.affinity == affinity
