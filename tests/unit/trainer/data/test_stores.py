"""Models and data in an object store: what is fetched, once, and the same for all pods of a job."""

import json
import threading
from pathlib import Path

import pytest
from huggingface_hub import constants

import stores as servers
from configs import trainer_config
from finetune_api.failures import FailureCode as Code
from finetune_trainer import download
from finetune_trainer.data.model import read_model
from finetune_trainer.data.sources import fetch_file, fetch_model, fetch_tokenizer
from finetune_trainer.failures import RunFailed
from finetune_trainer.files import sha256_of
from finetune_trainer.prepare import prepare
from rows import LIGHT_PARAMETERS, preference

URI = "s3://models/tiny"
ROWS = "".join(json.dumps(preference(f"question {i}")) + "\n" for i in range(5)).encode()


@pytest.fixture(scope="module")
def server():
    with servers.s3() as server:
        yield server


@pytest.fixture
def store(server, light_model, monkeypatch, tmp_path):
    """A store with a model in it, and much that a run must not fetch; nothing of it is in the cache yet."""
    for name, value in servers.S3.environment(server.port).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(download, "WAITS", ())
    for path in light_model.iterdir():
        server.put("models", f"tiny/{path.name}", path.read_bytes())
    for name in ("modeling_evil.py", "pytorch_model.bin", "consolidated.safetensors", "onnx/model.safetensors"):
        server.put("models", f"tiny/{name}", b"not wanted")
    server.put("data", "train.jsonl", ROWS)
    return server


def failure_of(call):
    with pytest.raises(RunFailed) as ended:
        call()
    return ended.value.failure


def names_in(folder):
    return {path.name for path in folder.iterdir()}


def test_a_model_is_fetched_as_safetensors_without_code(store, light_model):
    model = fetch_model(URI, {}, offline=False)
    assert names_in(model.path) == names_in(light_model)
    assert sha256_of(model.path / "model.safetensors") == sha256_of(light_model / "model.safetensors")


def test_weights_stay_where_they_are_when_only_the_tokenizer_is_needed(store):
    model = read_model(URI, {}, offline=False)
    assert (model.source, model.parameters, model.longest) == (URI, LIGHT_PARAMETERS, 512)
    folder, _ = fetch_tokenizer(URI)
    assert "model.safetensors" not in names_in(folder)


def test_what_is_here_is_not_fetched_again(store, monkeypatch):
    first = fetch_model(URI, {}, offline=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    assert fetch_model(URI, {}, offline=False, revision=first.revision) == first


def test_a_model_that_changed_since_it_was_prepared_is_another_one(store):
    before = fetch_model(URI, {}, offline=False, tokenizer_only=True)
    store.put("models", "tiny/config.json", b"{}")
    failure = failure_of(lambda: fetch_model(URI, {}, offline=False, revision=before.revision))
    assert (failure.code, failure.exit_code) == (Code.MODEL_UNSUPPORTED, 13)
    assert failure.args["problem"] == "it has changed since the job was prepared: create the job anew"
    assert fetch_model(URI, {}, offline=False).revision != before.revision


def test_processes_that_want_the_same_model_fetch_it_once(store, monkeypatch):
    fetched, found = [], []
    one_by_one = download.fetch_listed

    def fetch_listed(client, files, target):
        fetched.append(target)
        one_by_one(client, files, target)

    monkeypatch.setattr("finetune_trainer.data.stores.fetch_listed", fetch_listed)
    threads = [threading.Thread(target=lambda: found.append(fetch_model(URI, {}, offline=False))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(fetched) == 1
    assert len(found) == 4
    assert len(set(found)) == 1


def test_what_was_begun_and_not_finished_is_begun_anew(store, light_model):
    first = fetch_model(URI, {}, offline=False)
    part = first.path.with_name(f"{first.path.name}.part")
    first.path.rename(part)
    (part / "left-over").write_text("of a pod that was killed")
    assert names_in(fetch_model(URI, {}, offline=False).path) == names_in(light_model)


@pytest.mark.parametrize(
    ("uri", "code", "problem"),
    [
        ("s3://models/gone", Code.MODEL_NOT_FOUND, "there is no model below it"),
        ("s3://nowhere/tiny", Code.MODEL_NOT_FOUND, "it does not exist"),
        ("s3://models/old", Code.MODEL_UNSUPPORTED, "it has no weights in safetensors format"),
    ],
)
def test_what_is_no_model_says_why(store, uri, code, problem):
    store.put("models", "old/config.json", b"{}")
    store.put("models", "old/pytorch_model.bin", b"pickle")
    failure = failure_of(lambda: fetch_model(uri, {}, offline=False))
    assert (failure.code, failure.exit_code, failure.args["problem"]) == (code, 13, problem)


def test_a_store_that_nobody_serves_is_tried_again_by_a_new_pod(store, monkeypatch, tmp_path):
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    failure = failure_of(lambda: fetch_model(URI, {}, offline=False))
    assert (failure.code, failure.exit_code) == (Code.MODEL_UNREACHABLE, 21)
    failure = failure_of(lambda: fetch_file("s3://data/train.jsonl", {}, False, scratch=tmp_path))
    assert (failure.code, failure.exit_code) == (Code.DATA_UNREACHABLE, 20)


def test_data_that_is_not_there_or_not_for_us_names_the_field(store, monkeypatch, tmp_path):
    uri = "s3://data/gone.jsonl"
    failure = failure_of(lambda: fetch_file(uri, {}, False, "validationFile", scratch=tmp_path))
    assert (failure.code, failure.exit_code) == (Code.DATA_NOT_FOUND, 20)
    assert failure.sentence == f"{uri} does not exist or may not be read: check validationFile"
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    failure = failure_of(lambda: fetch_file("s3://data/train.jsonl", {}, False, scratch=tmp_path))
    assert failure.code is Code.DATA_NOT_FOUND
    assert failure.args["problem"] == "the credentials are missing or do not allow it"


def test_a_job_is_prepared_from_a_store_and_leaves_nothing_beside_its_output(store, tmp_path, monkeypatch):
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    told = []
    config = trainer_config(
        start={"model": URI}, training_file="s3://data/train.jsonl", output_uri=f"file://{tmp_path}/out"
    )
    prepared = prepare(config, lambda **fields: told.append(fields))
    assert prepared.rows == 5
    assert prepared.resolved.training_file.size_bytes == len(ROWS)
    assert prepared.resolved.model.source == URI
    assert prepared.resolved.model.revision == prepared.model_revision
    assert told[0]["progress"].display == "0.00 of 0.00 GB"
    assert list(Path(tmp_path / "tmp").iterdir()) == []


def test_with_a_cache_for_all_pods_preparing_fetches_the_weights_too(store, tmp_path, monkeypatch):
    config = trainer_config(
        start={"model": URI},
        training_file="s3://data/train.jsonl",
        output_uri=f"file://{tmp_path}/out",
        shared_cache=True,
    )
    prepared = prepare(config, lambda **fields: None)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    model = fetch_model(URI, {}, offline=True, revision=prepared.model_revision)
    assert (model.path / "model.safetensors").is_file()
