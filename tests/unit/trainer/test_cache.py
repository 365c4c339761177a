"""The cache of a runtime: filled in preparing, by several jobs at once too, and only read in training."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest

from finetune_api.trainer import Stage, Start
from finetune_trainer.data.sources import fetch_model
from finetune_trainer.out.progress import Reporter
from finetune_trainer.prepare import prepare
from finetune_trainer.run.train import train
from hub import on_this_machine
from training import preference_rows, trainer_config, write_jsonl


@pytest.fixture
def hub(tmp_path, tiny_model):
    with on_this_machine(tmp_path / "cache") as hub:
        hub.add("me/tiny", {path.name: path.read_bytes() for path in tiny_model.iterdir()})
        yield hub


@pytest.fixture
def config(tiny_model, tmp_path):
    write_jsonl(tmp_path / "train.jsonl", preference_rows(4))
    made = trainer_config(tiny_model, tmp_path)
    return made.model_copy(update={"start": Start(model="hf://me/tiny"), "shared_cache": True})


def tree(folder):
    """Every file of the cache and when it was written."""
    return {path: path.lstat().st_mtime_ns for path in folder.rglob("*")}


def test_training_reads_what_preparing_fetched_and_asks_and_writes_nothing(hub, config, tmp_path):
    prepare(config, lambda **_fields: None)
    assert "model.safetensors" in hub.downloads()
    before, hub.repositories = tree(tmp_path / "cache"), {}
    hub.requests.clear()
    reporter = Reporter(config.job, Stage.TRAIN, "pod-1")
    train(config, reporter, Event())
    assert reporter.report.output.adapter_uri
    assert (hub.requests, tree(tmp_path / "cache")) == ([], before)


def test_without_a_cache_preparing_leaves_the_weights_where_they_are(hub, config, tmp_path):
    prepare(config.model_copy(update={"shared_cache": False}), lambda **_fields: None)
    assert not [path for path in tree(tmp_path / "cache") if path.suffix == ".safetensors"]


def test_two_jobs_that_fetch_the_same_model_at_once_both_have_it_whole(hub, tiny_model):
    with ThreadPoolExecutor(4) as jobs:
        found = list(jobs.map(lambda _: fetch_model("hf://me/tiny", {}, offline=False), range(4)))
    assert len(set(found)) == 1
    for path in tiny_model.iterdir():
        assert (found[0].path / path.name).read_bytes() == path.read_bytes()
