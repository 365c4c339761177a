"""What is read of a model without its weights, and what is refused before any data is."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from finetune_api.failures import FailureCode as Code
from finetune_api.trainer import Start
from finetune_trainer.data.model import check_architecture, check_checkpoint, read_model, resolve_length
from finetune_trainer.failures import RunFailed
from finetune_trainer.files import sha256_of
from rows import LIGHT_PARAMETERS, save_light_model


def failure_of(call):
    with pytest.raises(RunFailed) as ended:
        call()
    return ended.value.failure


def read(folder):
    return read_model(f"file://{folder}", {}, offline=True)


def test_a_folder_tells_size_length_and_vocabulary(light_model):
    model = read(light_model)
    assert (model.parameters, model.longest, model.vocab_size) == (LIGHT_PARAMETERS, 512, 320)
    assert (model.source, model.revision) == (f"file://{light_model}", None)
    assert model.chat.has_template


def test_a_folder_tells_the_dimensions_of_a_model_that_is_known(tiny_model, light_model):
    shape = read(tiny_model).shape
    assert shape is not None
    assert (shape.layers, shape.hidden, shape.queries, shape.keys, shape.vocabulary) == (2, 32, 32, 16, 320)
    assert read(light_model).shape is None


def test_shards_are_counted_together(tmp_path):
    folder = save_light_model(tmp_path / "m")
    first, second = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    (folder / "model.safetensors").rename(folder / first)
    save_file({"c": np.zeros((2, 2), np.float32)}, folder / second)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": first, "c": second}}))
    assert read(folder).parameters == LIGHT_PARAMETERS + 4


@pytest.mark.parametrize(
    ("config", "own", "longest"),
    [
        ({"max_position_embeddings": 64}, 32, 64),
        ({"max_position_embeddings": None, "n_positions": 128}, None, 128),
        ({"max_position_embeddings": None, "text_config": {"max_position_embeddings": 16}}, None, 16),
        ({"max_position_embeddings": None}, 32, 32),
        ({"max_position_embeddings": None}, 10**30, None),
    ],
)
def test_the_longest_sequence_is_the_model_s_and_else_the_tokenizer_s(tmp_path, config, own, longest):
    folder = save_light_model(tmp_path / "m", **config)
    if own is not None:
        tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
        (folder / "tokenizer_config.json").write_text(json.dumps({**tokenizer, "model_max_length": own}))
    assert read(folder).longest == longest


def test_the_length_asked_for_must_fit_the_model(light_model, tmp_path):
    model = read(light_model)
    assert resolve_length(None, model) == 512
    assert resolve_length(64, model) == 64
    assert resolve_length(512, model) == 512
    failure = failure_of(lambda: resolve_length(513, model))
    assert (failure.code, failure.exit_code) == (Code.SEQUENCE_TOO_LONG_FOR_MODEL, 10)
    assert failure.sentence == "maxSeqLength is 513, the model takes at most 512: lower it"


def test_where_nobody_names_a_length_one_must_be_set(tmp_path):
    model = read(save_light_model(tmp_path / "m", max_position_embeddings=None))
    failure = failure_of(lambda: resolve_length(None, model))
    assert (failure.code, failure.args["field"]) == (Code.CONFIG_INVALID, "hyperparameters.maxSeqLength")
    assert resolve_length(64, model) == 64


@pytest.mark.parametrize(
    ("file", "content", "problem"),
    [
        ("config.json", None, "it has no config.json"),
        ("config.json", "{", "its config.json is damaged"),
        ("config.json", "[]", "its config.json is damaged"),
        ("tokenizer.json", None, "it has no tokenizer.json"),
        ("model.safetensors", None, "it has no weights in safetensors format"),
        ("model.safetensors", "\xff" * 20, "the header of its weights is damaged"),
        ("model.safetensors", "\x02" + "\x00" * 7 + "[]", "the header of its weights is damaged"),
    ],
)
def test_an_incomplete_model_is_refused_with_a_sentence(tmp_path, file, content, problem):
    folder = save_light_model(tmp_path / "m")
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_bytes(content.encode("latin-1"))
    failure = failure_of(lambda: read(folder))
    assert failure.code is Code.MODEL_UNSUPPORTED
    assert failure.sentence == f"the model file://{folder} cannot be trained: {problem}"


def test_a_checkpoint_is_held_to_its_digest(tmp_path, light_model):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_model.safetensors").write_bytes(b"weights")
    digest = sha256_of(adapter / "adapter_model.safetensors")
    base = f"file://{light_model}"
    whole = sha256_of(light_model / "model.safetensors")
    assert check_checkpoint(Start(model=base), {}) is None
    assert check_checkpoint(Start(model=base, sha256=whole), {}) == whole
    assert check_checkpoint(Start(model=base, adapter=f"file://{adapter}", sha256=digest), {}) == digest
    assert check_checkpoint(Start(model=base, adapter=f"file://{adapter}"), {}) == digest
    failure = failure_of(lambda: check_checkpoint(Start(model=base, adapter=f"file://{adapter}", sha256=whole), {}))
    assert (failure.code, failure.exit_code) == (Code.CHECKPOINT_CHANGED, 16)


@pytest.mark.parametrize("uri", ["pvc://models/gone", "pvc://models/empty", "pvc://elsewhere/adapter"])
def test_a_checkpoint_that_is_gone_is_named(tmp_path, light_model, uri):
    (tmp_path / "empty").mkdir()
    mounts = {"pvc://models": str(tmp_path)}
    for start in (
        Start(model=f"file://{light_model}", adapter=uri, sha256="0" * 64),
        Start(model=uri, sha256="0" * 64),
    ):
        failure = failure_of(lambda start=start: check_checkpoint(start, mounts))
        assert (failure.code, failure.exit_code, failure.args["uri"]) == (Code.CHECKPOINT_MISSING, 16, uri)


@pytest.mark.parametrize(
    ("file", "content", "problem"),
    [
        ("tokenizer.json", "{", "its tokenizer is damaged"),
        ("tokenizer.json", "{}", "its tokenizer is damaged"),
        ("tokenizer.json", '{"added_tokens": [], "model": {"type": "BPE"}}', "its tokenizer is damaged"),
        ("tokenizer_config.json", "{", "its tokenizer is damaged"),
        ("tokenizer_config.json", "[]", "its tokenizer is damaged"),
        ("config.json", None, "its config.json is damaged"),
    ],
)
def test_a_damaged_file_of_a_model_is_the_user_s_to_mend(tmp_path, file, content, problem):
    folder = save_light_model(tmp_path / "m")
    (folder / file).unlink(missing_ok=True)
    if content is None:
        (folder / file).mkdir()
    else:
        (folder / file).write_text(content)
    failure = failure_of(lambda: read(folder))
    assert (failure.code, failure.exit_code, failure.args["problem"]) == (Code.MODEL_UNSUPPORTED, 13, problem)


@pytest.mark.parametrize("odd", ["512", 0, -5, True, 1.5])
def test_a_number_that_is_none_is_as_if_it_were_not_given(tmp_path, odd):
    model = read(save_light_model(tmp_path / "m", max_position_embeddings=odd, vocab_size=odd))
    assert (model.longest, model.vocab_size) == (None, None)


def test_a_model_that_links_out_of_its_volume_is_refused(tmp_path):
    folder = save_light_model(tmp_path / "claim" / "m")
    (folder / "generation_config.json").symlink_to("/proc/self/environ")
    failure = failure_of(lambda: read_model("pvc://models/m", {"pvc://models": str(tmp_path / "claim")}, offline=True))
    assert failure.code is Code.MODEL_UNSUPPORTED
    assert "generation_config.json is a symbolic link" in failure.sentence


@pytest.mark.parametrize("key", ["hidden_size", "num_hidden_layers", "n_embd"])
def test_other_weights_must_be_of_the_same_architecture_and_size(tmp_path, key):
    base = save_light_model(tmp_path / "base", **{key: 8})
    start = Start(model=f"file://{save_light_model(tmp_path / 'own', **{key: 16})}", same_as=f"file://{base}")
    failure = failure_of(lambda: check_architecture(start, {}, offline=True))
    assert (failure.code, failure.exit_code) == (Code.MODEL_UNSUPPORTED, 13)
    assert failure.sentence == (
        f"the model {start.model} cannot be trained: its {key} is 16, that of file://{base} is 8:"
        " fromHfModel takes weights of the same architecture and size"
    )


def test_other_weights_may_know_more_tokens(tmp_path):
    base = save_light_model(tmp_path / "base", hidden_size=8)
    own = save_light_model(tmp_path / "own", hidden_size=8, vocab_size=321)
    check_architecture(Start(model=f"file://{own}", same_as=f"file://{base}"), {}, offline=True)


def test_other_weights_of_another_family_are_refused(tmp_path):
    base, own = save_light_model(tmp_path / "base"), save_light_model(tmp_path / "own", model_type="gemma3")
    start = Start(model=f"file://{own}", same_as=f"file://{base}")
    assert "its model_type is gemma3" in failure_of(lambda: check_architecture(start, {}, offline=True)).sentence
