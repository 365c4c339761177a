"""Python code of a model is run only where the runtime allows it and transformers knows no class of its own."""

import json
import shutil

import pytest
import torch
import transformers

from finetune_api.failures import FailureCode as Code
from finetune_trainer import remote_code
from finetune_trainer.data.sources import fetch_model
from finetune_trainer.failures import RunFailed
from finetune_trainer.layout import Layout
from finetune_trainer.prepare import prepare
from finetune_trainer.step.weights import load_base
from hub import on_this_machine
from runs import prepared, run
from tiny import save_model_with_code
from training import preference_rows, trainer_config, write_jsonl


@pytest.fixture
def mark(tmp_path):
    """Is there once code of the model has been run."""
    return tmp_path / "code-was-run"


@pytest.fixture(scope="module")
def modules(tmp_path_factory):
    """Where code is copied to before it is imported: a package, so that a process has only one."""
    return str(tmp_path_factory.mktemp("modules"))


@pytest.fixture
def own(tmp_path, mark, modules, monkeypatch):
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", modules)
    return save_model_with_code(tmp_path / "own", mark)


@pytest.fixture
def config(own, tmp_path):
    write_jsonl(tmp_path / "train.jsonl", preference_rows(6))
    return lambda **fields: trainer_config(own, tmp_path, **fields)


def failure_of(call):
    with pytest.raises(RunFailed) as ended:
        call()
    return ended.value.failure


def test_prepare_refuses_it_and_names_the_field_of_the_runtime(config, mark):
    failure = failure_of(lambda: prepare(config(), lambda **_: None))
    assert (failure.code, failure.exit_code) == (Code.REMOTE_CODE, 13)
    assert "have its spec.allowRemoteCode set to true" in failure.sentence
    assert not mark.exists()


def test_loading_refuses_it_too(own, mark):
    failure = failure_of(lambda: load_base(own, "pvc://models/own", None, torch.device("cpu")))
    assert (failure.code, failure.args) == (Code.REMOTE_CODE, {"uri": "pvc://models/own"})
    assert not mark.exists()


@pytest.mark.parametrize("kind", ["LoRA", "Full"])
def test_an_allowed_one_is_prepared_without_its_code_and_trained_with_it(config, mark, kind):
    lora = {} if kind == "LoRA" else {"lora": None}
    allowed = config(allowRemoteCode=True, trainingKind=kind, merge=kind == "LoRA", **lora)
    prepared(allowed)
    assert not mark.exists()
    report = run(allowed)
    assert mark.exists()
    assert report.progress.step == report.progress.total_steps
    layout = Layout.of(allowed)
    whole = layout.merged if kind == "LoRA" else layout.final
    assert {path.name for path in whole.glob("*.py")} == {"configuration_own.py", "modeling_own.py"}
    assert load_base(whole, "file://x", None, torch.device("cpu"), remote_code=True).causal.config.model_type == "own"


def test_where_transformers_knows_the_model_its_own_class_is_taken(tiny_model, tmp_path, mark):
    folder = shutil.copytree(tiny_model, tmp_path / "known")
    (folder / "modeling_own.py").write_text(f"from pathlib import Path\nPath({str(mark)!r}).touch()\n")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModelForCausalLM": "modeling_own.X"}}))
    for allowed in (False, True):
        loaded = load_base(folder, "file://x", None, torch.device("cpu"), remote_code=allowed).causal
        assert type(loaded) is transformers.LlamaForCausalLM
    assert not mark.exists()


def test_code_of_another_repository_is_never_fetched(own, tmp_path):
    config = json.loads((own / "config.json").read_text())
    elsewhere = {name: f"evil/code--{where}" for name, where in config["auto_map"].items()}
    (own / "config.json").write_text(json.dumps(config | {"auto_map": elsewhere}))
    with on_this_machine(tmp_path / "cache") as hub:
        hub.add("evil/code", {path.name: path.read_bytes() for path in own.glob("*.py")})
        failure = failure_of(lambda: load_base(own, "file://x", None, torch.device("cpu"), remote_code=True))
        assert failure.code is Code.MODEL_UNSUPPORTED
        assert not [path for _, path in hub.requests if "evil" in path]


@pytest.mark.parametrize("code", [False, True])
def test_code_is_downloaded_only_where_it_may_be_run(own, tmp_path, code):
    with on_this_machine(tmp_path / "cache") as hub:
        hub.add("me/own", {path.name: path.read_bytes() for path in own.iterdir()})
        found = fetch_model("hf://me/own", {}, offline=False, code=code)
        assert bool(remote_code.code_files(found.path)) is code
        assert any(name.endswith(".py") for name in hub.downloads()) is code
