"""Folders and repositories made by somebody who wants more than to be trained: each ends as a named cause."""

import io
import json
import pickle
import shutil
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from configs import trainer_config
from finetune_api.failures import FailureCode as Code
from finetune_trainer.data.model import check_checkpoint
from finetune_trainer.data.sources import fetch_file, fetch_model
from finetune_trainer.failures import RunFailed
from finetune_trainer.layout import Layout
from finetune_trainer.step.weights import load_base
from hub import on_this_machine


class Evil:
    """Leaves a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return (Path.touch, (self.mark,))


def pickled(mark: Path) -> bytes:
    file = io.BytesIO()
    pickle.dump({"weight": Evil(mark)}, file)
    return file.getvalue()


def failure_of(call):
    with pytest.raises(RunFailed) as ended:
        call()
    return ended.value.failure


@pytest.fixture
def model(tiny_model, tmp_path):
    return shutil.copytree(tiny_model, tmp_path / "claim/model")


@pytest.fixture
def mounts(tmp_path):
    (tmp_path / "claim").mkdir(exist_ok=True)
    return {"pvc://data": str(tmp_path / "claim")}


@pytest.fixture
def mark(tmp_path):
    return tmp_path / "code-was-run"


@pytest.mark.parametrize("name", ["pytorch_model.bin", "adapter_model.bin", "training_args.bin", "model.pt"])
def test_nothing_pickled_is_read_beside_the_weights(model, mark, name):
    (model / name).write_bytes(pickled(mark))
    load_base(model, "pvc://data/model", None, torch.device("cpu"))
    assert not mark.exists()


def test_weights_that_are_only_pickled_are_refused(model, mounts, mark):
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(pickled(mark))
    failure = failure_of(lambda: fetch_model("pvc://data/model", mounts, offline=True))
    assert (failure.code, failure.exit_code) == (Code.MODEL_UNSUPPORTED, 13)
    assert failure_of(lambda: load_base(model, "x", None, torch.device("cpu"))).code is Code.MODEL_UNSUPPORTED
    assert not mark.exists()


def test_an_adapter_that_lies_in_the_folder_of_a_base_is_not_loaded_with_it(model, mark):
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}
    (model / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "evil/base"}))
    (model / "adapter_model.bin").write_bytes(pickled(mark))
    failure = failure_of(lambda: load_base(model, "pvc://data/model", None, torch.device("cpu")))
    assert failure.code is Code.MODEL_UNSUPPORTED
    assert "adapter_config.json" in failure.sentence
    assert not mark.exists()


def test_attention_named_after_a_repository_is_not_fetched(model, tmp_path):
    config = json.loads((model / "config.json").read_text())
    for key in ("_attn_implementation", "attn_implementation"):
        (model / "config.json").write_text(json.dumps({**config, key: "evil/kernel"}))
        with on_this_machine(tmp_path / "cache") as hub:
            with suppress(RunFailed):
                assert load_base(model, "x", None, torch.device("cpu")).attention in ("sdpa", "eager")
            assert not [path for _, path in hub.requests if "evil" in path]


@pytest.mark.parametrize("name", ["../../evil.json", "/etc/evil.json", "a/../../evil.json"])
def test_a_file_name_of_a_repository_cannot_leave_the_cache(light_model, tmp_path, name):
    with on_this_machine(tmp_path / "cache" / "hub") as hub:
        files = {path.name: path.read_bytes() for path in light_model.iterdir()}
        hub.add("evil/model", {**files, name: b"{}"})
        found = fetch_model("hf://evil/model", {}, offline=False).path
        assert {path.name for path in found.iterdir()} == set(files)
        assert not list(tmp_path.rglob("*evil.json*"))


@pytest.mark.parametrize("target", ["/proc/self/environ", "../../etc/passwd", "/"])
def test_a_data_file_that_is_a_link_out_of_its_claim_is_refused(mounts, tmp_path, target):
    (tmp_path / "claim/train.jsonl").symlink_to(target)
    failure = failure_of(lambda: fetch_file("pvc://data/train.jsonl", mounts, offline=True))
    assert (failure.code, failure.exit_code) == (Code.DATA_UNREACHABLE, 20)
    assert "a symbolic link leads out of pvc://data" in failure.sentence


@pytest.mark.parametrize("uri", ["pvc://data/../other/a", "pvc://data/a/../../other", "pvc://data//etc/passwd"])
def test_a_path_that_climbs_out_of_its_claim_is_refused_even_where_no_schema_did(mounts, tmp_path, uri):
    (tmp_path / "other").mkdir()
    (tmp_path / "other/a").write_text("{}")
    assert failure_of(lambda: fetch_file(uri, mounts, offline=True)).code in (
        Code.DATA_UNREACHABLE,
        Code.DATA_NOT_FOUND,
    )


@pytest.mark.parametrize("shard", ["../other/w.safetensors", "/etc/passwd", "..", "a/b.safetensors"])
def test_a_checkpoint_whose_index_names_files_elsewhere_is_refused(model, mounts, shard):
    (model / "model.safetensors").unlink()
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))
    assert failure_of(lambda: fetch_model("pvc://data/model", mounts, offline=True)).code is Code.MODEL_UNSUPPORTED
    start = trainer_config(start={"model": "pvc://data/model", "sha256": "0" * 64}).start
    assert failure_of(lambda: check_checkpoint(start, mounts)).code is Code.CHECKPOINT_MISSING


def test_a_checkpoint_with_a_link_out_of_its_claim_is_refused(model, mounts):
    (model / "tokenizer.model").symlink_to("/proc/self/environ")
    start = trainer_config(start={"model": "hf://o/m", "adapter": "pvc://data/model", "sha256": "0" * 64}).start
    failure = failure_of(lambda: check_checkpoint(start, mounts))
    assert (failure.code, failure.exit_code) == (Code.CHECKPOINT_MISSING, 16)


@pytest.mark.parametrize("name", ["checkpoints", "metrics.jsonl", "manifest.json", "adapter"])
def test_an_output_that_would_be_written_through_a_link_is_refused(mounts, tmp_path, name):
    out = tmp_path / "claim/out/team/tiny"
    out.mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (out / name).symlink_to(tmp_path / "elsewhere")
    asked = trainer_config(output_uri="pvc://data/out", output_name="team/tiny", mounts=mounts)
    failure = failure_of(lambda: Layout.of(asked))
    assert (failure.code, failure.exit_code) == (Code.OUTPUT_NOT_WRITABLE, 22)
    assert f"{name} is a symbolic link that leads out of pvc://data" in failure.sentence
