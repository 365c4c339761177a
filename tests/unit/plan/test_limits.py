"""A job outside the runtime's or the model's limits is refused with field, value and bound."""

from __future__ import annotations

import re
from typing import Any

import pytest

from builders import NOW, before_start, make_job, make_runtime
from finetune_api.quantity import amount
from finetune_operator.plan.decide import decide
from finetune_operator.settings import Settings
from manifests import ROOT

LIMITS: dict[str, Any] = {
    "lora": {
        "maxRank": 32,
        "minBatchSize": 2,
        "maxBatchSize": 64,
        "maxBatchSizeDpo": 16,
        "targetModules": ["q_proj", "v_proj"],
    },
    "full": {"supported": False},
    "minSeqLength": 16,
    "maxSeqLengthSft": 2048,
    "maxSeqLengthDpo": 1024,
    "maxEpochs": 3,
    "maxEvals": 4,
    "maxCheckpoints": 5,
    "minLearningRate": 1e-6,
    "maxLearningRate": 1e-3,
    "supportsVision": False,
}


def message(spec: dict[str, Any], runtime: dict[str, Any]) -> str | None:
    """What a job is refused with; None = it starts."""
    plan = decide(make_job(**spec), before_start(make_runtime(**runtime)), Settings(), NOW)
    if plan.status.start_time:
        return None
    assert plan.status.conditions[0].reason == "LimitExceeded"
    return plan.status.conditions[0].message


@pytest.mark.parametrize(
    ("resources", "limits", "expected"),
    [
        ({"cpu": "5"}, {"maxCpu": "4"}, "resources.cpu is 5, and FineTuneRuntime gpu allows at most 4"),
        ({"cpu": "4000m"}, {"maxCpu": "4"}, None),
        ({"memory": "1025Mi"}, {"maxMemory": "1Gi"}, "resources.memory is 1025Mi"),
        ({"memory": "1Gi"}, {"maxMemory": "1Gi"}, None),
        ({"nodes": 2}, {}, "resources.nodes is 2, and FineTuneRuntime gpu allows at most 1 (spec.limits.maxNodes)"),
        ({"nodes": 3}, {"maxNodes": 2}, "resources.nodes is 3, and FineTuneRuntime gpu allows at most 2"),
        ({"gpusPerNode": 1}, {"maxGpusPerNode": 0}, "resources.gpusPerNode is 1"),
        ({"gpusPerNode": 2}, {}, "resources.gpusPerNode is 2, and FineTuneRuntime gpu allows at most 1 (spec.limits."),
        ({"gpusPerNode": 8}, {"maxGpusPerNode": 8}, None),
        ({}, {"maxMemory": "1Gi"}, "resources.memory is 2Gi"),
    ],
)
def test_the_size_stays_within_the_runtime(resources, limits, expected):
    said = message({"resources": resources}, {"limits": limits})
    assert said is None if expected is None else said.startswith(expected)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({"trainingType": {"lora": {"rank": 64}}}, "lora.rank is 64, and FineTuneRuntime gpu allows at most 32"),
        ({"hyperparameters": {"batchSize": 128}}, "batchSize is 128, and FineTuneRuntime gpu allows at least 2 and"),
        ({"hyperparameters": {"batchSize": 1}}, "batchSize is 1"),
        ({"hyperparameters": {"batchSize": 32}, "trainingMethod": {"type": "DPO"}}, "batchSize is 32"),
        ({"hyperparameters": {"maxSeqLength": 4096}}, "maxSeqLength is 4096"),
        ({"hyperparameters": {"maxSeqLength": 2048}, "trainingMethod": {"type": "DPO"}}, "maxSeqLength is 2048"),
        ({"hyperparameters": {"maxSeqLength": 8}}, "maxSeqLength is 8"),
        ({"hyperparameters": {"nEpochs": 4}}, "nEpochs is 4"),
        ({"validationFile": "pvc://finetune-data/v.jsonl", "evaluation": {"nEvals": 5}}, "nEvals is 5"),
        ({"checkpointing": {"nCheckpoints": 6}}, "nCheckpoints is 6"),
        ({"hyperparameters": {"learningRate": 0.01}}, "learningRate is 0.01"),
        ({"hyperparameters": {"learningRate": 1e-7}}, "learningRate is 1e-07"),
        ({"trainingType": {"type": "Full"}}, "trainingType is Full, which FineTuneRuntime gpu does not support"),
        (
            {"trainingType": {"lora": {"trainableModules": ["q_proj", "k_proj"]}}},
            "lora.trainableModules has k_proj, and FineTuneRuntime gpu allows q_proj, v_proj for tiny",
        ),
        ({"trainVision": True}, "trainVision is true, which FineTuneRuntime gpu does not support for tiny: set it to"),
        ({"trainVision": False}, None),
        ({"trainingType": {"lora": {"trainableModules": ["q_proj"]}}}, None),
        ({"trainingType": {"lora": {"trainableModules": ["all-linear"]}}}, None),
        ({"hyperparameters": {"batchSize": "max"}}, None),
        ({"hyperparameters": {"maxSeqLength": 1024}, "trainingMethod": {"type": "DPO"}}, None),
    ],
)
def test_the_job_stays_within_its_model(spec, expected):
    models = [{"name": "tiny", "source": "hf://org/tiny", "limits": LIMITS}]
    said = message({"model": "tiny", **spec}, {"models": models})
    assert said is None if expected is None else said.startswith(expected)


@pytest.mark.parametrize("limits", [{}, {"supportsVision": True}], ids=["nothing said", "supported"])
def test_only_a_model_that_is_said_to_have_none_may_not_train_its_vision_encoder(limits):
    models = [{"name": "tiny", "source": "hf://org/tiny", "limits": limits}]
    assert message({"model": "tiny", "trainVision": True}, {"models": models}) is None


@pytest.mark.parametrize(
    ("quantity", "value"),
    [("500m", "0.5"), (2, "2"), ("1.5Gi", str(1.5 * 2**30)), ("1k", "1000"), ("10Ti", 10 * 2**40)],
)
def test_quantities_are_numbers(quantity, value):
    assert float(amount(quantity)) == float(value)


@pytest.mark.parametrize(
    ("spec", "limits"),
    [({}, {"lora": {"supported": False}}), ({"hyperparameters": {"batchSize": 65}}, LIMITS)],
    ids=["training not supported", "batch size"],
)
def test_the_page_for_those_who_come_from_together_has_the_sentence(spec, limits):
    """Its cells leave names and numbers out as dots."""
    page = (ROOT / "docs" / "together.md").read_text()
    cells = re.findall(r"\| Accepted=False, LimitExceeded \| (.*) \|", page)
    assert len(cells) == 2
    models = [{"name": "tiny", "source": "hf://org/tiny", "limits": limits}]
    said = message({"model": "tiny", **spec}, {"models": models})
    assert said is not None
    sentences = [re.escape(cell).replace(r"\.\.\.", ".+") for cell in cells]
    assert [bool(re.fullmatch(sentence, said)) for sentence in sentences].count(True) == 1
