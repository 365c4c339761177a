"""Digests and atomic writes."""

import hashlib
import json

import pytest

from finetune_trainer.files import sha256_of, weight_files, weights_digest, write_atomically


def test_the_digest_of_one_weights_file_is_that_file_s(tmp_path):
    (tmp_path / "adapter_model.safetensors").write_bytes(b"weights")
    assert weights_digest(tmp_path) == hashlib.sha256(b"weights").hexdigest()


def test_the_digest_of_shards_is_that_of_their_digests(tmp_path):
    shards = {"model-00002-of-00002.safetensors": b"two", "model-00001-of-00002.safetensors": b"one"}
    for name, content in shards.items():
        (tmp_path / name).write_bytes(content)
    index = {"weight_map": {"b": "model-00002-of-00002.safetensors", "a": "model-00001-of-00002.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    lines = "".join(f"{name} {hashlib.sha256(shards[name]).hexdigest()}\n" for name in sorted(shards))
    assert weights_digest(tmp_path) == hashlib.sha256(lines.encode()).hexdigest()
    (tmp_path / "model-00001-of-00002.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model-00001-of-00002\.safetensors is missing"):
        weight_files(tmp_path)


@pytest.mark.parametrize("index", ["{}", "[]", '{"weight_map": {"a": "../other.safetensors"}}', "not json"])
def test_a_damaged_index_is_refused(tmp_path, index):
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(ValueError):
        weight_files(tmp_path)


def test_a_folder_without_weights_has_no_digest(tmp_path):
    with pytest.raises(FileNotFoundError):
        weights_digest(tmp_path)


def test_an_atomic_write_replaces_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "state.json"
    write_atomically(path, "old")
    write_atomically(path, "new")
    assert path.read_text() == "new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["state.json"]
    assert sha256_of(path) == hashlib.sha256(b"new").hexdigest()
