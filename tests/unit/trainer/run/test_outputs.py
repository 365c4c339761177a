"""Runs whose output is in an object store: each process begins with an empty disk, as a new pod does."""

import json
import os
import signal
import tempfile
from threading import Event

import pytest

from finetune_api.failures import FailureCode
from finetune_trainer.failures import RunFailed
from finetune_trainer.mirror import StoreMirror
from finetune_trainer.run.telling import Teller
from runs import Blow, Stopping, attempt, prepared, published, run, struck, weights
from training import metrics_rows

NAME = "ml/tiny-0f1e2d3c"


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


@pytest.fixture
def stored(settings, store, new_disk):
    config = settings.model_copy(update={"output_uri": f"{store.bucket()}/team", "output_name": NAME})
    prepared(config)
    new_disk()
    return config


def downloaded(store, config, folder):
    """What of the output is in the store, as a folder."""
    for name, content in store.below(config.output_uri).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def assert_left_as(whole, store, config, folder):
    """The store holds what a run on a volume leaves that never stopped, and nothing else."""
    left = downloaded(store, config, folder)
    assert [path.name for path in left.iterdir()] == ["ml"], "the private state is gone"
    output = left / NAME
    assert weights(output) == weights(whole)
    assert metrics_rows(output / "metrics.jsonl") == metrics_rows(whole / "metrics.jsonl")
    assert published(output) == published(whole)
    names = [{p.relative_to(top).as_posix() for p in top.rglob("*") if p.is_file()} for top in (output, whole)]
    assert names[0] == names[1]
    assert store.unfinished(config.output_uri) == []


def test_a_store_holds_in_the_end_what_a_volume_would(stored, store, whole, tmp_path):
    report = run(stored)
    assert_left_as(whole, store, stored, tmp_path / "left")
    place = f"{stored.output_uri}/{NAME}"
    assert report.output.adapter_uri == f"{place}/adapter"
    assert report.checkpoints[0].uri == f"{place}/checkpoints/step-{report.checkpoints[0].step}"


def test_stopped_and_resumed_on_an_empty_disk_equals_uninterrupted(stored, store, whole, new_disk, tmp_path):
    assert attempt(stored, Stopping(40)) is FailureCode.STOPPED
    new_disk()
    assert attempt(stored, Event()) > 0
    assert_left_as(whole, store, stored, tmp_path / "left")


def test_killed_and_resumed_on_an_empty_disk_equals_uninterrupted(stored, store, whole, new_disk, tmp_path):
    blow = Blow(signal.SIGKILL, Teller, "saved", lambda _teller, step: step >= 9)
    assert os.WTERMSIG(struck(stored, blow)) == signal.SIGKILL
    new_disk()
    assert attempt(stored, Event()) >= 8
    assert_left_as(whole, store, stored, tmp_path / "left")


def test_a_pod_that_finds_everything_published_tells_it_again(stored, store, new_disk, tmp_path):
    first = run(stored)
    before = store.below(stored.output_uri)
    new_disk()
    again = run(stored)
    assert again.checkpoints == first.checkpoints
    assert again.output == first.output
    assert store.below(stored.output_uri) == before


def test_nothing_is_left_on_the_disk_that_the_store_has(stored, tmp_path, monkeypatch):
    spared = []
    real = StoreMirror.spare
    monkeypatch.setattr(StoreMirror, "spare", lambda mirror, folder: (spared.append(folder), real(mirror, folder)))
    run(stored)
    assert {folder.parent.name for folder in spared} == {"recovery", "checkpoints"}
    assert not any(folder.exists() for folder in spared)


def test_the_output_of_another_job_is_refused(stored, store):
    key = f"{stored.output_uri}/{NAME}/manifest.json"
    manifest = json.loads(store.files.cat_file(key))
    store.files.pipe_file(key, json.dumps({**manifest, "job": {**manifest["job"], "uid": "other"}}).encode())
    with pytest.raises(RunFailed) as end:
        run(stored)
    assert end.value.failure.code is FailureCode.OUTPUT_TAKEN
