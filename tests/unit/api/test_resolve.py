"""Absent values: the model's entry before the constants, the parent adapter before both."""

from __future__ import annotations

import pytest

from finetune_api.job import JobSpec
from finetune_api.resolve import inherited_conflict, model_uri, resolve
from finetune_api.runtime import RuntimeModel
from finetune_api.trainer import LoraConfig

PARENT = LoraConfig(rank=4, alpha=12.0, dropout=0.3, trainable_modules=("q_proj", "v_proj"))


def spec(method="DPO", kind="LoRA", lora=None, **hyperparameters):
    return JobSpec.model_validate(
        {
            "model": "org/name",
            "trainingFile": "pvc://finetune-data/train.jsonl",
            "trainingMethod": {"type": method},
            "trainingType": {"type": kind, "lora": lora},
            "hyperparameters": hyperparameters,
        }
    )


def entry(lora=None, **limits):
    return RuntimeModel.model_validate(
        {"name": "org/name", "source": "hf://org/name", "limits": {"lora": lora or {}, **limits}}
    )


def test_without_an_entry_the_constants_hold():
    values = resolve(spec(), None)
    assert values.batch_size == 32
    assert values.max_seq_length is None
    assert values.lora == LoraConfig(rank=16, alpha=32.0, dropout=0.0, trainable_modules=("all-linear",))


@pytest.mark.parametrize(
    ("limits", "rank"),
    [({"defaultRank": 8, "maxRank": 64}, 8), ({"maxRank": 64}, 64), ({}, 16)],
)
def test_rank_is_the_default_rank_else_the_maximum_else_16_and_alpha_twice_that(limits, rank):
    lora = resolve(spec(), entry(lora=limits)).lora
    assert (lora.rank, lora.alpha) == (rank, 2.0 * rank)


@pytest.mark.parametrize(
    ("given", "modules"),
    [(None, ("q_proj", "v_proj")), (["all-linear"], ("q_proj", "v_proj")), (["q_proj"], ("q_proj",))],
)
def test_all_linear_stands_for_the_layers_that_the_runtime_names(given, modules):
    lora = {"trainableModules": given} if given else None
    assert (
        resolve(spec(lora=lora), entry(lora={"targetModules": ["q_proj", "v_proj"]})).lora.trainable_modules == modules
    )


@pytest.mark.parametrize(("method", "size"), [("SFT", 128), ("DPO", 24)])
@pytest.mark.parametrize("given", [{}, {"batchSize": "max"}])
def test_max_is_the_limit_of_the_model_and_method(method, size, given):
    limits = {"maxBatchSize": 128, "maxBatchSizeDpo": 24}
    assert resolve(spec(method, **given), entry(lora=limits)).batch_size == size


def test_full_training_has_its_own_limits_and_no_adapter():
    values = resolve(spec(kind="Full"), entry(lora={"maxBatchSizeDpo": 24}, full={"maxBatchSizeDpo": 6}))
    assert values.batch_size == 6
    assert values.lora is None


@pytest.mark.parametrize(("method", "length"), [("SFT", 4096), ("DPO", 1024)])
def test_sequence_length_is_the_limit_of_the_method(method, length):
    assert resolve(spec(method), entry(maxSeqLengthSft=4096, maxSeqLengthDpo=1024)).max_seq_length == length


def test_what_is_given_wins():
    given = spec(
        lora={"rank": 2, "alpha": 3, "dropout": 0.5, "trainableModules": ["q_proj"]}, batchSize=5, maxSeqLength=64
    )
    values = resolve(given, entry(lora={"defaultRank": 8, "maxBatchSizeDpo": 24}, maxSeqLengthDpo=1024))
    assert (values.batch_size, values.max_seq_length) == (5, 64)
    assert values.lora == LoraConfig(rank=2, alpha=3.0, dropout=0.5, trainable_modules=("q_proj",))


def test_a_continued_adapter_passes_on_all_but_dropout():
    values = resolve(spec(), entry(lora={"defaultRank": 8}), PARENT)
    assert values.lora == PARENT.model_copy(update={"dropout": 0.0})
    assert resolve(spec(lora={"dropout": 0.2}), None, PARENT).lora.dropout == 0.2


@pytest.mark.parametrize(
    ("lora", "sentence"),
    [
        (None, None),
        ({"rank": 4, "alpha": 12, "dropout": 0.1, "trainableModules": ["v_proj", "q_proj"]}, None),
        ({"rank": 8}, "lora.rank is 8, but the adapter of fromCheckpoint has 4: leave it out"),
        ({"alpha": 8}, "lora.alpha is 8, but the adapter of fromCheckpoint has 12: leave it out"),
        (
            {"trainableModules": ["k_proj"]},
            "lora.trainableModules is [k_proj], but the adapter of fromCheckpoint has [q_proj, v_proj]: leave it out",
        ),
    ],
)
def test_another_shape_than_the_continued_adapter_is_refused(lora, sentence):
    assert inherited_conflict(spec(lora=lora), PARENT) == sentence


@pytest.mark.parametrize(
    ("model", "source", "uri"),
    [
        ("org/m@v1", None, "hf://org/m@v1"),
        ("pvc://models/m", None, "pvc://models/m"),
        ("m", None, None),
        ("m", "org/m@v1", "hf://org/m@v1"),
        ("org/m", "pvc://models/m", "pvc://models/m"),
        ("m", "gpt2", "hf://gpt2"),
    ],
)
def test_a_model_has_one_uri_wherever_it_runs(model, source, uri):
    entry = RuntimeModel.model_validate({"name": model, "source": source}) if source else None
    assert model_uri(model, entry) == uri
