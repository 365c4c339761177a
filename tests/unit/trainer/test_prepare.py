"""The whole prepare step: what it leaves, what it tells, how it ends, and that it may be run again at any point."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from finetune_api.failures import FailureCode as Code
from finetune_api.findings import DATA_WARNINGS, DataWarningCode
from finetune_trainer import prepare as prepare_module
from finetune_trainer.data.prepared import load_prepared
from finetune_trainer.data.tokens import CacheKind, open_cache
from finetune_trainer.failures import RunFailed
from finetune_trainer.files import sha256_of
from finetune_trainer.layout import Layout
from finetune_trainer.prepare import prepare
from hub import on_this_machine, serving
from preparing import config_over, failure_of, quiet
from rows import LIGHT_PARAMETERS, LLAMA_LIKE, THINKING, conversation, preference, save_light_model, write_rows


@pytest.fixture
def config(light_model, tmp_path):
    return config_over(light_model, tmp_path)


def test_it_leaves_tokens_a_report_and_what_it_resolved(config, tmp_path):
    validation = write_rows(tmp_path / "eval.jsonl", preference("other"), preference("question 1"))
    told = {}
    asked = config(validation_file=f"file://{validation}", batch_size=2, hyperparameters={"nEpochs": 3})
    prepared = prepare(asked, lambda **fields: told.update(fields))
    layout = Layout.of(asked)
    assert load_prepared(layout.prepared) == prepared
    assert (prepared.kind, prepared.rows, prepared.validation_rows) == (CacheKind.PREFERENCE, 5, 2)
    assert (prepared.total_steps, prepared.batch_size, prepared.max_seq_length) == (9, 2, 512)
    assert [row.line for row in map(open_cache(layout.prepared / "train").pair, range(5))] == [1, 2, 3, 4, 5]
    assert len(open_cache(layout.prepared / "validation")) == 2
    assert (set(told), told["warnings"]) == ({"data", "estimate", "resolved", "warnings"}, ())
    assert told["data"].pairs == 5
    assert told["data"].warnings == (
        "1 rows of validationFile are also in trainingFile: evaluation will look better than it is",
    )
    resolved = told["resolved"]
    assert resolved.model.parameters == LIGHT_PARAMETERS
    assert resolved.training_file.sha256 == sha256_of(tmp_path / "train.jsonl")
    assert resolved.validation_file.size_bytes == validation.stat().st_size
    assert (resolved.lora_rank, resolved.lora_alpha, resolved.trainable_modules) == (4, 8.0, ("all-linear",))
    assert (resolved.max_seq_length, resolved.total_steps) == (512, 9)
    report = json.loads(layout.data_report.read_text())
    assert (report["errorCount"], report["trainingFile"]["used"], report["trainingFile"]["errors"]) == (0, 5, [])
    assert report["validationFile"]["warnings"] == [
        {"line": 2, "code": "InTrainingFile", "message": DATA_WARNINGS[DataWarningCode.IN_TRAINING_FILE]}
    ]
    assert set(report["validationFile"]["tokens"]) == {"prompt", "preferred", "nonPreferred"}
    assert told["data"].report_uri == layout.uri_of(layout.data_report)
    assert json.loads(layout.manifest.read_text())["job"]["uid"] == asked.job.uid


def test_the_total_counts_a_last_step_that_is_not_full(config):
    assert prepare(config(batch_size=5), quiet).total_steps == 1
    assert prepare(config(batch_size=4, hyperparameters={"nEpochs": 2}), quiet).total_steps == 4


def test_sft_takes_conversations(config, tmp_path):
    rows = write_rows(tmp_path / "talk.jsonl", conversation("a", "b"), conversation("c", "d", "e", "f"))
    prepared = prepare(config(training_file=f"file://{rows}", training_method={"type": "SFT"}), quiet)
    assert prepared.kind is CacheKind.CONVERSATION
    assert (prepared.data.format, prepared.data.pairs, list(prepared.data.tokens)) == (
        "conversation",
        None,
        ["sequence"],
    )


def test_run_again_it_keeps_what_is_done(config):
    layout = Layout.of(config())
    first = prepare(config(), quiet)
    tokens = layout.prepared / "train/tokens.npy"
    before = tokens.stat().st_mtime_ns
    assert prepare(config(), quiet) == first
    assert tokens.stat().st_mtime_ns == before
    longer = prepare(config(hyperparameters={"nEpochs": 4}), quiet)
    assert (longer.key, longer.total_steps) == (first.key, 4 * first.total_steps)
    assert tokens.stat().st_mtime_ns == before


@pytest.mark.parametrize("change", ["length", "method", "row", "damage", "missing", "not vouched for"])
def test_run_again_it_starts_afresh_where_anything_differs(config, tmp_path, change):
    layout = Layout.of(config())
    first = prepare(config(), quiet)
    tokens = layout.prepared / "train/tokens.npy"
    fields = {}
    if change == "length":
        fields = {"max_seq_length": 100}
    elif change == "method":
        fields = {"training_method": {"type": "SFT"}}
    elif change == "row":
        write_rows(tmp_path / "train.jsonl", *(preference(f"question {i}") for i in range(1, 6)))
    elif change == "damage":
        tokens.write_bytes(tokens.read_bytes()[:-1] + b"\xff")
    elif change == "missing":
        (layout.prepared / "train/lines.npy").unlink()
    else:
        (layout.prepared / "prepared.json").write_text("{")
    again = prepare(config(**fields), quiet)
    assert (again.key == first.key) is (change in {"damage", "missing", "not vouched for"})
    assert (again.digests == first.digests) is (change not in {"method", "row"})
    assert len(open_cache(layout.prepared / "train")) == 5


def test_stopped_in_the_middle_it_can_be_run_again(config, monkeypatch):
    def stop(*arguments):
        raise KeyboardInterrupt

    layout = Layout.of(config())
    prepare(config(max_seq_length=100), quiet)
    with monkeypatch.context() as patch:
        patch.setattr(prepare_module, "write_reports", stop)
        with pytest.raises(KeyboardInterrupt):
            prepare(config(), quiet)
    # nothing vouches any more for the caches of the first run, which are gone
    assert load_prepared(layout.prepared) is None
    assert prepare(config(), quiet).rows == 5
    assert sorted(path.name for path in layout.prepared.iterdir()) == ["prepared.json", "train"]
    assert sorted(path.name for path in layout.output.iterdir()) == ["data-report.json", "manifest.json"]


def test_bad_rows_of_both_files_end_it_after_all_are_found(config, tmp_path):
    train = write_rows(tmp_path / "train.jsonl", preference(), b"{", {"question": "x"})
    check = write_rows(tmp_path / "eval.jsonl", preference(preferred=""), preference("fine"))
    told = {}
    asked = config(validation_file=f"file://{check}")
    with pytest.raises(RunFailed) as ended:
        prepare(asked, lambda **fields: told.update(fields))
    assert ended.value.failure.exit_code == 11
    assert ended.value.failure.sentence == (
        f"3 bad rows in trainingFile file://{train} and validationFile file://{check}; the first: line 2, the row: "
        "the line is not JSON: write one JSON object per line"
    )
    assert told["data"].error_count == 3
    assert [(error.file, error.line, error.code) for error in told["data"].errors] == [
        ("trainingFile", 2, "InvalidJson"),
        ("trainingFile", 3, "UnknownFormat"),
        ("validationFile", 1, "EmptyAnswer"),
    ]
    layout = Layout.of(asked)
    assert json.loads(layout.data_report.read_text())["errorCount"] == 3
    assert list(layout.prepared.iterdir()) == []


def test_no_row_that_fits_is_no_data(config):
    failure = failure_of(config(max_seq_length=20))
    assert (failure.code, failure.exit_code) == (Code.NO_TRAINABLE_ROWS, 11)
    assert (failure.args["dropped"], failure.args["limit"]) == ("5", "20")


def test_a_length_beyond_the_model_s_is_refused_before_the_data_is_read(config):
    assert failure_of(config(max_seq_length=513, training_file="file:///gone")).code is Code.SEQUENCE_TOO_LONG_FOR_MODEL


def test_a_continued_checkpoint_is_resolved_and_held_to_its_digest(config, tmp_path, light_model):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_model.safetensors").write_bytes(b"weights")
    start = {"model": f"file://{light_model}", "adapter": f"file://{adapter}"}
    digest = sha256_of(adapter / "adapter_model.safetensors")
    resolved = prepare(config(start={**start, "sha256": digest}), quiet).resolved
    assert (resolved.model.checkpoint, resolved.model.checkpoint_sha256) == (f"file://{adapter}", digest)
    assert failure_of(config(start={**start, "sha256": "0" * 64})).code is Code.CHECKPOINT_CHANGED


def test_a_template_of_the_job_or_of_the_adapter_that_it_continues_renders_the_rows(config, tmp_path, light_model):
    """SFT with a template of its own, then DPO: the second job need not say it again."""
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_model.safetensors").write_bytes(b"weights")
    (adapter / "chat_template.jinja").write_text(LLAMA_LIKE)
    start = {"model": f"file://{light_model}"}
    plain = prepare(config(), quiet)
    own = prepare(config(data={"chatTemplate": LLAMA_LIKE}), quiet)
    inherited = prepare(config(start={**start, "adapter": f"file://{adapter}"}), quiet)
    assert plain.digests != own.digests == inherited.digests
    failure = failure_of(config(data={"chatTemplate": "{% for %}"}))
    assert (failure.exit_code, failure.args["field"]) == (10, "data.chatTemplate")


def test_options_of_the_data_decide_the_tokens_and_are_counted(config, tmp_path):
    rows = [
        preference("x" * 300),
        preference("x" * 300),
        {**preference("y"), "weight": 0},
        preference("z"),
        preference("z"),
    ]
    file = write_rows(tmp_path / "mixed.jsonl", *rows)
    asked = {"training_file": f"file://{file}", "max_seq_length": 100}
    data = prepare(config(**asked), quiet).data
    assert (data.rows, data.pairs, data.dropped, data.duplicates, data.weightless) == (5, 2, 2, 2, 1)
    assert data.max_tokens == data.tokens["prompt"].max + data.tokens["preferred"].max
    again = prepare(config(**asked, data={"duplicates": "Drop"}), quiet)
    assert (again.data.pairs, again.data.dropped, again.data.duplicates) == (1, 1, 2)
    failure = failure_of(config(**asked, data={"overlong": "Fail"}))
    assert (failure.code, failure.args["count"]) == (Code.DATA_INVALID, "2")


def test_what_changes_the_training_is_told_now_and_when_it_goes_on(config, tmp_path):
    rows = write_rows(tmp_path / "talk.jsonl", conversation("a", "b", "c", "d"), conversation("e", "f"))
    asked = config(training_file=f"file://{rows}", training_method={"type": "SFT"}, data={"chatTemplate": THINKING})
    for _ in range(2):
        told = {}
        prepared = prepare(asked, lambda told=told, **fields: told.update(fields))
        assert [warning.reason for warning in told["warnings"]] == ["LastTurnOnly"]
        assert told["warnings"] == prepared.warnings


def test_the_output_of_another_job_is_not_touched(config):
    prepare(config(), quiet)
    before = Layout.of(config()).data_report.stat().st_mtime_ns
    other = config(job={"namespace": "default", "name": "tiny", "uid": "another"})
    failure = failure_of(other)
    assert (failure.code, failure.exit_code) == (Code.OUTPUT_TAKEN, 22)
    assert Layout.of(other).data_report.stat().st_mtime_ns == before
    Layout.of(other).manifest.write_text("not ours")
    assert failure_of(config()).code is Code.OUTPUT_TAKEN


def test_an_output_that_cannot_be_written_is_told_first(config, tmp_path):
    (tmp_path / "file").write_text("")
    failure = failure_of(config(output_uri=f"file://{tmp_path}/file", start={"model": "file:///gone"}))
    assert (failure.code, failure.exit_code) == (Code.OUTPUT_NOT_WRITABLE, 22)
    assert failure.args["problem"] in {"Not a directory", "File exists"}


def test_a_full_disk_is_told_as_such(config, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(prepare_module, "write_cache", full)
    assert failure_of(config()).code is Code.STORAGE_FULL


WHOLE_STEP = """
import json, sys
from finetune_api.trainer import TrainerConfig
from finetune_trainer.prepare import prepare
prepared = prepare(TrainerConfig.model_validate_json(sys.argv[1]), lambda **fields: None)
print(json.dumps({"resolved": prepared.resolved.to_json(), "revision": prepared.model_revision,
                  "heavy": sorted({"torch", "peft", "s3fs", "gcsfs", "azure", "aiohttp"} & sys.modules.keys())}))
"""


def test_it_tells_what_the_job_will_take(config, tmp_path, tiny_model):
    validation = write_rows(tmp_path / "eval.jsonl", preference("other"))
    asked = config(
        start={"model": f"file://{tiny_model}"},
        validation_file=f"file://{validation}",
        hyperparameters={"nEpochs": 3},
        evaluation={"nEvals": 2},
        price_per_million_tokens=2.5,
    )
    told = {}
    prepared = prepare(asked, lambda **fields: told.update(fields))
    estimate, prepared_folder = told["estimate"], Layout.of(asked).prepared
    assert estimate.train_tokens == 3 * prepared.data.total_tokens
    assert estimate.eval_tokens == 2 * open_cache(prepared_folder / "validation").tokens.size
    assert estimate.price == pytest.approx((estimate.train_tokens + estimate.eval_tokens) * 2.5e-6)
    assert estimate.memory.weights > 4 * prepared.resolved.model.parameters
    prepare(asked, lambda **fields: told.update(again=fields.get("estimate", told.get("again"))))
    assert told["again"] == estimate, "a step that was finished before tells it again"


def test_of_a_model_without_known_dimensions_it_tells_tokens(config):
    told = {}
    prepare(config(gpus=1, gpu_memory_bytes=1), lambda **fields: told.update(fields))
    assert told["estimate"].to_json() == {"trainTokens": told["data"].total_tokens, "evalTokens": 0}


def test_what_cannot_fit_the_gpus_ends_before_training(config, tiny_model):
    asked = config(start={"model": f"file://{tiny_model}"}, gpus=1, gpu_memory_bytes=10_000)
    told = {}
    with pytest.raises(RunFailed) as ended:
        prepare(asked, lambda **fields: told.update(fields))
    assert (ended.value.failure.code, ended.value.failure.exit_code) == (Code.GPU_SMALL_FOR_MODEL, 14)
    assert told["estimate"].fits is False
    assert load_prepared(Layout.of(asked).prepared) is None


def test_from_the_hub_alone_and_without_torch(config, light_model, tmp_path):
    """A process of its own, pointed at a Hub by HF_ENDPOINT as a pod is."""
    rows = "\n".join(json.dumps(preference(f"question {i}")) for i in range(3)).encode()
    with serving() as hub:
        model = hub.add("me/model", {path.name: path.read_bytes() for path in light_model.iterdir()})
        hub.add("datasets/me/rows", {"train.jsonl": rows})
        asked = config(start={"model": "hf://me/model"}, training_file="hf://datasets/me/rows@main/train.jsonl")
        source = os.pathsep.join(path for path in sys.path if path)
        environment = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "PYTHONPATH": source, "PATH": ""}
        done = subprocess.run(
            [sys.executable, "-c", WHOLE_STEP, json.dumps(asked.to_json())],
            env=environment, capture_output=True, text=True, timeout=120, cwd=Path(tmp_path), check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["heavy"] == []
    assert found["revision"] == model.commit
    assert found["resolved"]["model"] == {
        "source": "me/model",
        "revision": model.commit,
        "parameters": LIGHT_PARAMETERS,
    }
    assert "config.json" in hub.downloads()


def test_other_weights_than_the_model_s_are_held_to_its_architecture(config, light_model, tmp_path):
    larger = save_light_model(tmp_path / "larger", hidden_size=4096)
    start = {"model": f"file://{larger}", "sameAs": f"file://{light_model}"}
    assert failure_of(config(start=start)).code is Code.MODEL_UNSUPPORTED
    assert prepare(config(start={**start, "sameAs": f"file://{larger}"}), quiet).rows == 5


def test_a_repository_that_cannot_be_written_is_told_before_the_data_is_read(config, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "reader")
    with on_this_machine(tmp_path / "cache"):
        assert failure_of(config(hf_repo="me/a", training_file="file:///gone")).code is Code.HUB_NOT_WRITABLE
