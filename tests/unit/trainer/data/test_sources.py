"""Files and models from volumes and from a Hub that speaks the real protocol, and how each failure is named."""

import errno
import math
import os

import pytest
from huggingface_hub import constants

import web
from finetune_api.failures import FailureCode as Code
from finetune_trainer import download
from finetune_trainer.data import hub as hub_module
from finetune_trainer.data.https import Web
from finetune_trainer.data.hub import tensor_shapes
from finetune_trainer.data.sources import fetch_file, fetch_model
from finetune_trainer.failures import RunFailed
from hub import on_this_machine
from rows import LIGHT_PARAMETERS

ROWS = b'{"messages": []}\n'


@pytest.fixture
def hub(tmp_path):
    """A local Hub; the client believes that it is the only one and starts with an empty cache."""
    with on_this_machine(tmp_path / "cache") as hub:
        yield hub


@pytest.fixture
def files(light_model):
    """A repository as they are: weights, configuration, and much that a run must not fetch."""
    found = {path.name: path.read_bytes() for path in light_model.iterdir()}
    extra = ("modeling_evil.py", "pytorch_model.bin", "consolidated.safetensors", "onnx/model.safetensors", "README.md")
    return {**found, **dict.fromkeys(extra, b"not wanted")}


def failure_of(call):
    with pytest.raises(RunFailed) as ended:
        call()
    return ended.value.failure


def test_a_model_is_fetched_at_its_commit_as_safetensors_without_code(hub, files):
    repository = hub.add("me/model", files)
    model = fetch_model("hf://me/model", {}, offline=False)
    assert model.revision == repository.commit
    kept = {"config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "model.safetensors"}
    assert {path.name for path in model.path.iterdir()} == hub.downloads() == kept
    assert (model.path / "model.safetensors").read_bytes() == files["model.safetensors"]


def test_weights_stay_where_they_are_when_only_the_tokenizer_is_needed(hub, files):
    repository = hub.add("me/model", files)
    model = fetch_model("hf://me/model@main", {}, offline=False, tokenizer_only=True)
    assert not (model.path / "model.safetensors").exists()
    shapes = tensor_shapes("me/model", repository.commit)
    assert sum(map(math.prod, shapes.values())) == LIGHT_PARAMETERS


def test_a_known_commit_goes_before_the_branch(hub, files):
    repository = hub.add("me/model", files)
    repository.tags.add("v1")
    assert fetch_model("hf://me/model@v1", {}, offline=False).revision == repository.commit
    again = fetch_model("hf://me/model@gone", {}, offline=False, revision=repository.commit)
    assert again.revision == repository.commit


def test_offline_takes_the_cache_and_asks_nothing(hub, files):
    repository = hub.add("me/model", files)
    fetch_model("hf://me/model", {}, offline=False)
    hub.requests.clear()
    model = fetch_model("hf://me/model", {}, offline=True)
    assert model.revision == repository.commit
    assert hub.requests == []
    missing = failure_of(lambda: fetch_model("hf://me/other", {}, offline=True))
    assert missing.code is Code.MODEL_UNREACHABLE
    assert missing.args["problem"] == "it is not in the cache, and nothing else may be asked"


@pytest.mark.parametrize("kind", ["datasets/", ""])
def test_a_data_file_is_fetched_from_either_kind_of_repository(hub, kind):
    hub.add(f"{kind}me/rows", {"data/train.jsonl": ROWS})
    assert fetch_file(f"hf://{kind}me/rows/data/train.jsonl", {}, offline=False).path.read_bytes() == ROWS
    assert fetch_file(f"hf://{kind}me/rows@main/data/train.jsonl", {}, offline=False).path.read_bytes() == ROWS


def test_what_a_branch_of_the_hub_stood_for_is_known(hub):
    repository = hub.add("datasets/me/rows", {"deep/down/train.jsonl": ROWS})
    for uri in ("hf://datasets/me/rows/deep/down/train.jsonl", "hf://datasets/me/rows@main/deep/down/train.jsonl"):
        assert fetch_file(uri, {}, offline=False).revision == repository.commit
        assert fetch_file(uri, {}, offline=True).revision == repository.commit


def test_a_file_of_a_host_comes_under_its_own_name_into_the_scratch_folder(tmp_path):
    told = []
    with web.serving() as site:
        site.files["/data/train.jsonl"] = ROWS
        far = Web(("localhost",), lambda address: True, site.trusted)
        url = site.url("/data/train.jsonl")
        found = fetch_file(url, {}, True, web=far, scratch=tmp_path, told=lambda *far: told.append(far))
    assert (found.path.name, found.path.read_bytes(), found.revision) == ("train.jsonl", ROWS, None)
    assert found.path.is_relative_to(tmp_path)
    assert told == [(len(ROWS), len(ROWS))]


def test_a_host_that_may_not_be_read_is_the_configurations_fault(tmp_path):
    url = "https://localhost/train.jsonl"
    failure = failure_of(lambda: fetch_file(url, {}, False, "validationFile", scratch=tmp_path))
    assert (failure.code, failure.exit_code) == (Code.DATA_REFUSED, 10)
    assert failure.sentence == (
        f"validationFile is {url}, which may not be read: no entry of access.httpsHosts in the FineTuneRuntime admits"
        " localhost: add it, or put the file on a claim or into an object store"
    )
    failure = failure_of(lambda: fetch_file(url, {}, False, web=Web(("localhost",)), scratch=tmp_path))
    assert "has the address" in failure.sentence, "no configuration and no environment opens private networks"


@pytest.mark.parametrize(
    ("status", "code", "exit_code"),
    [(404, Code.DATA_NOT_FOUND, 20), (403, Code.DATA_NOT_FOUND, 20), (500, Code.DATA_UNREACHABLE, 20)],
)
def test_a_host_that_does_not_give_the_file(tmp_path, monkeypatch, status, code, exit_code):
    monkeypatch.setattr(download, "WAITS", ())
    with web.serving() as site:
        site.answers["/train.jsonl"] = [status]
        far = Web(("localhost",), lambda address: True, site.trusted)
        failure = failure_of(lambda: fetch_file(site.url("/train.jsonl"), {}, False, web=far, scratch=tmp_path))
    assert (failure.code, failure.exit_code) == (code, exit_code)
    assert failure.args["problem"] == f"the server answered {status}"


def test_a_token_opens_what_is_private(hub, files, monkeypatch):
    hub.add("me/model", files, token="hf_right")
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    assert fetch_model("hf://me/model", {}, offline=False).revision


@pytest.mark.parametrize(
    ("uri", "problem"),
    [
        ("hf://me/absent", "there is no such repository, or the token may not read it"),
        ("hf://me/private", "there is no such repository, or the token may not read it"),
        ("hf://me/gated", "it is gated and the token may not read it"),
        ("hf://me/open@nowhere", "there is no such revision"),
    ],
)
@pytest.mark.parametrize("token", [None, "hf_wrong"])
def test_a_model_that_may_not_be_read_is_not_found(hub, files, monkeypatch, uri, problem, token):
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    hub.add("me/open", files)
    hub.add("me/private", files, token="hf_right")
    hub.add("me/gated", files, token="hf_right", gated=True)
    failure = failure_of(lambda: fetch_model(uri, {}, offline=False))
    assert (failure.code, failure.exit_code) == (Code.MODEL_NOT_FOUND, 13)
    assert failure.args == {"uri": uri, "problem": problem}


@pytest.mark.parametrize(
    "uri", ["hf://datasets/me/absent/x", "hf://datasets/me/rows/absent", "hf://datasets/me/rows@nowhere/train.jsonl"]
)
def test_data_that_is_not_there_names_the_field(hub, uri):
    hub.add("datasets/me/rows", {"train.jsonl": ROWS})
    failure = failure_of(lambda: fetch_file(uri, {}, False, "validationFile"))
    assert (failure.code, failure.exit_code) == (Code.DATA_NOT_FOUND, 20)
    assert failure.sentence == f"{uri} does not exist or may not be read: check validationFile"


def test_a_repository_without_safetensors_is_unsupported(hub):
    hub.add("me/old", {"config.json": b"{}", "pytorch_model.bin": b"pickle"})
    failure = failure_of(lambda: fetch_model("hf://me/old", {}, offline=False))
    assert (failure.code, failure.exit_code) == (Code.MODEL_UNSUPPORTED, 13)
    assert failure.sentence.endswith("cannot be trained: it has no weights in safetensors format")
    assert hub.downloads() == set()


def test_a_short_burst_of_server_errors_is_waited_out(hub, files):
    hub.add("me/model", files)
    hub.failures[:] = [503, 502]
    assert fetch_model("hf://me/model", {}, offline=False).revision


@pytest.mark.parametrize("status", [500, 503])
def test_a_hub_that_is_down_is_unreachable(hub, files, status):
    hub.add("me/model", files)
    hub.add("datasets/me/rows", {"train.jsonl": ROWS})
    hub.failures[:] = [status] * 100
    failure = failure_of(lambda: fetch_model("hf://me/model", {}, offline=False))
    assert (failure.code, failure.exit_code) == (Code.MODEL_UNREACHABLE, 21)
    assert failure.args["problem"] == f"the Hub answered {status}"
    failure = failure_of(lambda: fetch_file("hf://datasets/me/rows/train.jsonl", {}, offline=False))
    assert (failure.code, failure.exit_code) == (Code.DATA_UNREACHABLE, 20)
    assert failure.args["problem"] == f"the Hub answered {status}"


def test_a_hub_that_nobody_serves_is_unreachable(hub, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
    )
    assert failure_of(lambda: fetch_model("hf://me/model", {}, False)).code is Code.MODEL_UNREACHABLE
    assert failure_of(lambda: fetch_file("hf://me/model/x", {}, False)).code is Code.DATA_UNREACHABLE


def test_a_file_of_a_volume(tmp_path):
    mounts = {"pvc://data": str(tmp_path)}
    (tmp_path / "train.jsonl").write_bytes(ROWS)
    (tmp_path / "folder").mkdir()
    assert fetch_file("pvc://data/train.jsonl", mounts, offline=True).path == tmp_path / "train.jsonl"
    for absent in ("gone.jsonl", "folder", "train.jsonl/x"):
        failure = failure_of(lambda uri=f"pvc://data/{absent}": fetch_file(uri, mounts, offline=True))
        assert failure.sentence == f"pvc://data/{absent} does not exist or may not be read: check trainingFile"
    failure = failure_of(lambda: fetch_file("configmap://x/train.jsonl", mounts, offline=True))
    assert failure.sentence == "configmap://x/train.jsonl could not be read: configmap://x is not mounted"


def test_a_model_of_a_volume(tmp_path, light_model):
    mounts = {"pvc://models": str(light_model.parent), "pvc://empty": str(tmp_path)}
    found = fetch_model("pvc://models/model", mounts, offline=True)
    assert (found.path, found.revision) == (light_model, None)
    assert failure_of(lambda: fetch_model("pvc://models/gone", mounts, True)).code is Code.MODEL_NOT_FOUND
    assert failure_of(lambda: fetch_model("pvc://empty", mounts, True)).code is Code.MODEL_UNSUPPORTED
    assert failure_of(lambda: fetch_model("pvc://other", mounts, True)).code is Code.MODEL_UNSUPPORTED


@pytest.mark.parametrize(
    "error",
    [OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)), RuntimeError("Data Writing Error: No space left on device")],
    ids=lambda error: type(error).__name__,
)
def test_a_full_cache_is_told_as_such(monkeypatch, error):
    def full(*_arguments, **_more):
        raise error

    monkeypatch.setattr(hub_module, "snapshot_download", full)
    failure = failure_of(lambda: hub_module.fetch_snapshot("me/model", None, weights=True, offline=True))
    assert (failure.code, failure.exit_code) == (Code.STORAGE_FULL, 22)
    assert failure.args == {"uri": constants.HF_HUB_CACHE}, "the cache, not the output"
