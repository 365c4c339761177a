"""Runs whose output is in an object store: each process begins with an empty disk, as a new pod does."""

import json
import os
import signal
import tempfile
from dataclasses import replace
from threading import Event

import pytest
import torch
from safetensors.torch import load_file

from finetune_api.failures import FailureCode
from finetune_api.hyperparameters import Hyperparameters
from finetune_api.method import TrainingKind
from finetune_api.trainer import ExitCode, Stage
from finetune_trainer.data.model import check_checkpoint
from finetune_trainer.failures import RunFailed
from finetune_trainer.files import ADAPTER_WEIGHTS, sha256_of
from finetune_trainer.mirror import StoreMirror
from finetune_trainer.out.progress import Reporter
from finetune_trainer.run.telling import Teller
from finetune_trainer.run.train import train
from hub import on_this_machine
from runs import Blow, Stopping, attempt, prepared, published, run, struck, weights
from together import together
from training import metrics_rows

NAME = "ml/tiny-0f1e2d3c"
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # the Hub's client and its own
EPOCHS = {"learningRate": 1e-2, "seed": 7}


@pytest.fixture
def new_disk(tmp_path, monkeypatch):
    """From each call on, an empty one."""
    disks = iter(range(100))

    def change():
        disk = tmp_path / f"disk-{next(disks)}"
        disk.mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(disk))

    change()
    return change


@pytest.fixture(scope="module")
def short(settings):
    """6 steps."""
    return settings.model_copy(update={"hyperparameters": Hyperparameters.model_validate({**EPOCHS, "nEpochs": 2})})


@pytest.fixture(scope="module")
def whole(short, tmp_path_factory):
    """What it leaves on a volume."""
    folder = tmp_path_factory.mktemp("whole") / "out"
    run(prepared(short.model_copy(update={"output_uri": f"file://{folder}"})))
    return folder


@pytest.fixture
def stored(short, buckets, new_disk):
    config = short.model_copy(update={"output_uri": f"{buckets.new()}/team", "output_name": NAME})
    prepared(config)
    new_disk()
    return config


def downloaded(buckets, config, folder):
    """What of the output is in the buckets, as a folder."""
    for name, content in buckets.below(config.output_uri).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def assert_left_as(whole, buckets, config, folder):
    """The store holds what a run on a volume leaves that never stopped, and nothing else."""
    left = downloaded(buckets, config, folder)
    assert [path.name for path in left.iterdir()] == ["ml"], "the private state is gone"
    output = left / NAME
    assert weights(output) == weights(whole)
    assert metrics_rows(output / "metrics.jsonl") == metrics_rows(whole / "metrics.jsonl")
    assert published(output) == published(whole)
    names = [{p.relative_to(top).as_posix() for p in top.rglob("*") if p.is_file()} for top in (output, whole)]
    assert names[0] == names[1]
    assert buckets.unfinished(config.output_uri) == []


def test_a_store_holds_in_the_end_what_a_volume_would_and_the_disk_has_room(
    stored, buckets, whole, new_disk, tmp_path, monkeypatch
):
    spared = []
    real = StoreMirror.spare
    monkeypatch.setattr(StoreMirror, "spare", lambda mirror, folder: (spared.append(folder), real(mirror, folder)))
    report = run(stored)
    place = f"{stored.output_uri}/{NAME}"
    assert report.output.adapter_uri == f"{place}/adapter"
    assert report.checkpoints[0].uri == f"{place}/checkpoints/step-{report.checkpoints[0].step}"
    assert {folder.parent.name for folder in spared} == {"recovery", "checkpoints"}
    assert not any(folder.exists() for folder in spared)
    new_disk()
    again = run(stored)
    assert (again.checkpoints, again.output) == (report.checkpoints, report.output), "its pod may find it all done"
    assert_left_as(whole, buckets, stored, tmp_path / "left")


def test_stopped_and_resumed_on_an_empty_disk_equals_uninterrupted(stored, buckets, whole, new_disk, tmp_path):
    assert attempt(stored, Stopping(10)) is FailureCode.STOPPED
    new_disk()
    assert attempt(stored, Event()) > 0
    assert_left_as(whole, buckets, stored, tmp_path / "left")


def test_killed_and_resumed_on_an_empty_disk_equals_uninterrupted(stored, buckets, whole, new_disk, tmp_path):
    blow = Blow(signal.SIGKILL, Teller, "saved", lambda _teller, step: step >= 3)
    assert os.WTERMSIG(struck(stored, blow)) == signal.SIGKILL
    new_disk()
    assert attempt(stored, Event()) >= 2
    assert_left_as(whole, buckets, stored, tmp_path / "left")


def test_the_hub_gets_the_final_weights_and_the_status_its_page(short, tmp_path, monkeypatch):
    with on_this_machine(tmp_path / "cache") as hub:
        monkeypatch.setenv("HF_TOKEN", "token")
        hub.writers.add("token")
        asked = prepared(short.model_copy(update={"output_uri": f"file://{tmp_path}/out", "hf_repo": "me/support-dpo"}))
        hub.writers.clear()
        with pytest.raises(RunFailed) as end:
            run(asked)
        assert end.value.failure.exit_code == ExitCode.PUBLISH_FAILED
        assert (tmp_path / "out" / "adapter").is_dir(), "what is published stays"
        hub.writers.add("token")
        report = run(asked)
        assert report.output.hf_url == f"{hub.url}/me/support-dpo"
        files = hub.repositories["me/support-dpo"].files
        assert files == {path.name: path.read_bytes() for path in (tmp_path / "out" / "adapter").iterdir()}
        assert hub.repositories["me/support-dpo"].commits == ["FineTuneJob ml/dpo, step 6"]


def test_a_job_goes_on_from_a_checkpoint_in_a_store_and_from_no_other(stored, buckets, whole, new_disk):
    uri = f"{buckets.new()}/first/adapter"
    buckets.files.put(str(whole / "adapter"), uri, recursive=True)
    start = stored.start.model_copy(update={"adapter": uri, "sha256": sha256_of(whole / "adapter" / ADAPTER_WEIGHTS)})
    report = run(prepared(stored.model_copy(update={"start": start})))
    assert report.progress.step == 6
    changed = start.model_copy(update={"sha256": "0" * 64})
    with pytest.raises(RunFailed) as end:
        check_checkpoint(changed, {})
    assert end.value.failure.code is FailureCode.CHECKPOINT_CHANGED
    gone = start.model_copy(update={"adapter": f"{uri}/nowhere"})
    with pytest.raises(RunFailed) as end:
        check_checkpoint(gone, {})
    assert end.value.failure.code is FailureCode.CHECKPOINT_MISSING


def test_the_output_of_another_job_is_refused(stored, buckets):
    key = f"{stored.output_uri}/{NAME}/manifest.json"
    manifest = json.loads(buckets.files.cat_file(key))
    buckets.files.pipe_file(key, json.dumps({**manifest, "job": {**manifest["job"], "uid": "other"}}).encode())
    with pytest.raises(RunFailed) as end:
        run(stored)
    assert end.value.failure.code is FailureCode.OUTPUT_TAKEN


@pytest.mark.parametrize("kind", ["LoRA", "Full"])
def test_pods_with_disks_of_their_own_begin_in_a_store_and_others_end_there(
    short, buckets, new_disk, tmp_path, monkeypatch, kind
):
    """Two processes are stopped, then three go on: each has an empty disk, and what it needs from the store."""
    adapter = {"lora": short.lora.model_copy(update={"dropout": 0.0})}
    full = {"training_kind": TrainingKind.FULL, "lora": None} if kind == "Full" else adapter
    config = short.model_copy(update={"output_uri": f"{buckets.new()}/team", "output_name": NAME, **full})
    whole = config.model_copy(update={"output_uri": f"file://{tmp_path / 'whole'}"})
    run(prepared(whole))
    prepared(config)

    def work(round_, stopping):
        def train_there(ranks):
            disk = tmp_path / f"disk-{round_}-{ranks.rank}"
            disk.mkdir()
            monkeypatch.setattr(tempfile, "tempdir", str(disk))
            reporter = Reporter(config.job, Stage.TRAIN, "pod-1")
            try:
                train(config, reporter, stopping(), replace(ranks, local=0))
            except RunFailed as end:
                return end.failure.code
            return reporter.report.resumed_from_step

        return train_there

    assert together(2, work("first", lambda: Stopping(9))) == ["Stopped"] * 2
    resumed, *others = together(3, work("second", Event))
    assert 0 < resumed < 9
    assert others == [resumed] * 2
    left = downloaded(buckets, config, tmp_path / "left") / NAME
    alone, shared = metrics_rows(tmp_path / "whole" / NAME / "metrics.jsonl"), metrics_rows(left / "metrics.jsonl")
    assert [row["train/loss"] for row in shared if "train/loss" in row] == pytest.approx(
        [row["train/loss"] for row in alone if "train/loss" in row], abs=1e-6
    )
    file = "model/model.safetensors" if kind == "Full" else "adapter/adapter_model.safetensors"
    found, expected = load_file(left / file), load_file(tmp_path / "whole" / NAME / file)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-5)
