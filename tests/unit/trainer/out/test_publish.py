"""Published folders: complete under their name, listed, safe to publish again."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
from dataclasses import replace

import pytest
from transformers import AutoTokenizer

from buckets import Death, Died
from finetune_api.failures import FailureCode
from finetune_api.report import Report
from finetune_api.status import CheckpointType
from finetune_api.trainer import Stage
from finetune_trainer.failures import RunFailed
from finetune_trainer.files import sha256_of
from finetune_trainer.layout import Layout
from finetune_trainer.mirror import StoreMirror
from finetune_trainer.out.card import Card
from finetune_trainer.out.publish import Publisher
from tiny import save_tokenizer
from training import trainer_config

PLANNED = (2, 4, 5, 6, 9)


@pytest.fixture
def publisher(tmp_path):
    base = tmp_path / "base"
    base.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "model.safetensors"):
        (base / name).write_text(name)
    config = trainer_config(base, tmp_path)
    layout = Layout.of(config)
    for folder in (layout.private, layout.output):
        folder.mkdir(parents=True, exist_ok=True)
    return Publisher(config, layout, base, Card(config, "org/name", "abc", {}), frozenset(PLANNED))


def saving(content):
    def save(folder):
        (folder / "adapter_model.safetensors").write_text(content)
        (folder / "adapter_config.json").write_text("{}")

    return save


def test_a_checkpoint_holds_weights_tokenizer_template_and_card(publisher):
    (entry,) = publisher.publish(5, CheckpointType.INTERMEDIATE, {"evalLoss": 0.5}, saving("five"))
    folder = publisher.layout.checkpoints / "step-5"
    assert {path.name for path in folder.iterdir()} == {
        "adapter_model.safetensors",
        "adapter_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "README.md",
    }
    assert (entry.name, entry.step, entry.type, entry.metrics) == ("dpo:5", 5, "Intermediate", {"evalLoss": 0.5})
    assert entry.uri == f"{publisher.layout.uri}/checkpoints/step-5"
    assert entry.sha256 == sha256_of(folder / "adapter_model.safetensors")
    assert entry.size_bytes == sum(path.stat().st_size for path in folder.iterdir())
    assert not publisher.layout.final.exists()


def test_the_final_one_is_the_adapter_too(publisher):
    publisher.publish(5, CheckpointType.INTERMEDIATE, {}, saving("five"))
    entries = publisher.publish(9, CheckpointType.FINAL, {}, saving("nine"))
    assert [entry.step for entry in entries] == [5, 9]
    final = publisher.layout.output / "adapter"
    assert {p.name: p.read_bytes() for p in final.iterdir()} == {
        p.name: p.read_bytes() for p in (publisher.layout.checkpoints / "step-9").iterdir()
    }
    assert publisher.output().adapter_uri == f"{publisher.layout.uri}/adapter"


def card_of(folder):
    return (folder / "README.md").read_text()


def test_each_card_tells_its_own_step_and_metrics(publisher):
    publisher.publish(5, CheckpointType.INTERMEDIATE, {"evalLoss": 0.5}, saving("five"))
    publisher.publish(9, CheckpointType.FINAL, {"evalLoss": 0.25}, saving("nine"))
    publisher.publish_merged(merging("merged", 0.0625))
    layout = publisher.layout
    five, nine, adapter = (
        card_of(f) for f in (layout.checkpoints / "step-5", layout.checkpoints / "step-9", layout.final)
    )
    assert ("after step 5" in five, "| evalLoss | 0.5 |" in five) == (True, True)
    assert ("after step 9" in nine, "| evalLoss | 0.25 |" in nine, nine == adapter) == (True, True, True)
    merged = card_of(layout.merged)
    assert ("| evalLoss | 0.25 |" in merged, "| mergeError | 0.0625 |" in merged) == (True, True)
    assert "merged into its base" in merged


def merging(content, error):
    def save(folder):
        (folder / "model.safetensors").write_text(content)
        return error

    return save


def test_merged_weights_stand_beside_the_final_ones_and_are_listed_once(publisher):
    publisher.publish(5, CheckpointType.FINAL, {"evalLoss": 0.5}, saving("five"), best=5)
    for _ in range(2):
        entries = publisher.publish_merged(merging("merged", 0.001))
    assert [(c.step, c.type, c.best) for c in entries] == [(5, "Final", True), (5, "FinalMerged", False)]
    assert entries[-1].uri == f"{publisher.layout.uri}/merged"
    assert entries[-1].sha256 == sha256_of(publisher.layout.merged / "model.safetensors")
    assert entries[-1].metrics == {"evalLoss": 0.5, "mergeError": 0.001}
    again = publisher.publish(5, CheckpointType.FINAL, {"evalLoss": 0.5}, saving("five"), best=5)
    assert [c.type for c in again] == ["FinalMerged", "Final"], "it stays listed while the final one is published again"
    publisher.conclude(Report(job_uid=publisher.config.job.uid, stage=Stage.TRAIN, checkpoints=entries))
    assert publisher.layout.merged.is_dir()
    assert publisher.forget_after(4) == ()


@pytest.mark.parametrize("embedded", ["another", [{"name": "default", "template": "another"}]])
def test_the_jobs_own_template_is_published_in_place_of_the_tokenizers(publisher, tmp_path, embedded):
    base = tmp_path / "base"
    save_tokenizer(base)
    described = json.loads((base / "tokenizer_config.json").read_text()) | {"chat_template": embedded}
    (base / "tokenizer_config.json").write_text(json.dumps(described))
    (base / "chat_template.json").write_text('{"chat_template": "a third"}')
    own = "{{ bos_token }}{% for m in messages %}[{{ m['content'] }}]\n{% endfor %}\n"
    config = publisher.config.model_copy(
        update={"data": publisher.config.data.model_copy(update={"chat_template": own})}
    )
    replace(publisher, config=config).publish(5, CheckpointType.FINAL, {}, saving("five"))
    for folder in (publisher.layout.final, publisher.layout.checkpoints / "step-5"):
        assert AutoTokenizer.from_pretrained(folder).chat_template == own


def test_publishing_again_replaces_what_differs_and_lists_it_once(publisher):
    publisher.publish(5, CheckpointType.FINAL, {}, saving("old"))
    (entry,) = publisher.publish(5, CheckpointType.FINAL, {}, saving("new"))
    for folder in (publisher.layout.checkpoints / "step-5", publisher.layout.final):
        assert (folder / "adapter_model.safetensors").read_text() == "new"
    assert entry.sha256 == sha256_of(publisher.layout.final / "adapter_model.safetensors")


def test_publishing_the_same_again_touches_nothing(publisher):
    publisher.publish(5, CheckpointType.FINAL, {}, saving("same"))
    weights = publisher.layout.final / "adapter_model.safetensors"
    before = weights.stat().st_ino
    publisher.publish(5, CheckpointType.FINAL, {}, saving("same"))
    assert weights.stat().st_ino == before


def test_a_save_that_fails_leaves_no_folder_under_the_name(publisher):
    def broken(folder):
        saving("half")(folder)
        raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(RunFailed, match="cannot be written: Input/output error"):
        publisher.publish(5, CheckpointType.INTERMEDIATE, {}, broken)
    assert not (publisher.layout.checkpoints / "step-5").exists()
    assert len(publisher.publish(5, CheckpointType.INTERMEDIATE, {}, saving("whole"))) == 1


def test_a_full_disk_has_a_name_of_its_own(publisher):
    def full(_folder):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(RunFailed) as caught:
        publisher.publish(5, CheckpointType.INTERMEDIATE, {}, full)
    assert caught.value.failure.code is FailureCode.STORAGE_FULL


def test_checkpoints_after_the_resumed_step_are_forgotten(publisher):
    for step in (2, 4, 6):
        publisher.publish(step, CheckpointType.INTERMEDIATE, {}, saving(str(step)))
    assert [entry.step for entry in publisher.forget_after(4)] == [2, 4]
    assert [entry.step for entry in publisher.publish(6, CheckpointType.FINAL, {}, saving("6"))] == [2, 4, 6]


def test_the_conclusion_keeps_the_last_report_and_removes_the_private_state(publisher):
    entries = publisher.publish(9, CheckpointType.FINAL, {}, saving("nine"))
    (publisher.layout.private / "secret").write_text("tokens")
    last = Report(job_uid=publisher.config.job.uid, stage=Stage.TRAIN, checkpoints=entries)
    publisher.conclude(last)
    assert not publisher.layout.private.parent.exists()
    assert Report.model_validate(json.loads(publisher.layout.manifest.read_text())["last"]) == last


def test_the_private_state_of_other_jobs_stays(publisher):
    other = publisher.layout.private.with_name("other-job")
    other.mkdir()
    publisher.conclude(Report(job_uid=publisher.config.job.uid, stage=Stage.TRAIN))
    assert other.is_dir()
    assert not publisher.layout.private.exists()


def publish_bests(publisher, *steps):
    """Each of `steps` is the best evaluation so far when it is published."""
    for step in steps:
        entries = publisher.publish(step, CheckpointType.INTERMEDIATE, {}, saving(str(step)), best=step)
    return entries


def folders(publisher):
    return {int(folder.name.removeprefix("step-")) for folder in publisher.layout.checkpoints.iterdir()}


def listed(publisher):
    return [c["step"] for c in json.loads(publisher.layout.manifest.read_text())["checkpoints"]]


def test_the_best_is_marked_and_the_one_before_it_is_told_no_more(publisher):
    entries = publish_bests(publisher, 2, 3, 7)
    assert [(c.step, c.best) for c in entries] == [(2, False), (7, True)]
    assert folders(publisher) == {2, 3, 7}
    assert listed(publisher) == [2, 3, 7]
    final = publisher.publish(9, CheckpointType.FINAL, {}, saving("9"), best=7)
    assert [(c.step, c.best) for c in final] == [(2, False), (7, True), (9, False)]


@pytest.mark.parametrize(
    ("states", "left"),
    [
        ((), {4, 7}),
        ((1, 2), {4, 7}),
        ((2, 3), {3, 4, 7}),
        ((6, 8), {3, 4, 7}),
        ((7, 8), {3, 4, 7}),
        ((8, 10), {4, 7}),
    ],
)
def test_a_former_best_stays_as_long_as_a_state_knows_it_as_the_best(publisher, states, left):
    publish_bests(publisher, 3)
    publisher.publish(4, CheckpointType.INTERMEDIATE, {}, saving("4"), best=3)
    publish_bests(publisher, 7)
    publisher.remove_superseded(states)
    assert folders(publisher) == left
    assert set(listed(publisher)) == left


def test_each_former_best_has_its_own_time(publisher):
    publish_bests(publisher, 1, 3, 7, 8)
    publisher.remove_superseded((5, 10))
    assert folders(publisher) == {3, 8}
    publisher.remove_superseded((10, 11))
    assert folders(publisher) == {8}


def test_a_restart_takes_up_the_best_that_its_state_knows(publisher):
    publish_bests(publisher, 3, 7)
    assert [(c.step, c.best) for c in publisher.forget_after(5, best=3)] == [(3, True)]
    assert [(c.step, c.best) for c in publish_bests(publisher, 7)] == [(7, True)]


def test_a_checkpoint_of_an_evaluation_that_is_made_again_waits_for_its_verdict(publisher):
    publish_bests(publisher, 3, 7)
    assert [c.step for c in publisher.forget_after(7, best=3)] == [3]
    publisher.remove_superseded((7, 7))
    assert listed(publisher) == [3, 7]


def test_killed_while_a_former_best_is_removed_a_restart_publishes_it_again(publisher, monkeypatch):
    entries = publish_bests(publisher, 3, 7)

    def killed(path, **_options):
        if path.exists():
            (path / "adapter_model.safetensors").unlink()
            raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        publisher.remove_superseded((8, 9))
    monkeypatch.undo()
    publisher.forget_after(0)
    assert publish_bests(publisher, 3, 7)[-1].sha256 == entries[-1].sha256
    assert (publisher.layout.checkpoints / "step-3" / "adapter_model.safetensors").is_file()
    publisher.remove_superseded((8, 9))
    assert folders(publisher) == {7}


def test_at_the_end_nothing_is_left_that_is_not_offered(publisher):
    publish_bests(publisher, 1, 3, 7)
    entries = publisher.publish(9, CheckpointType.FINAL, {}, saving("9"), best=7)
    publisher.conclude(Report(job_uid=publisher.config.job.uid, stage=Stage.TRAIN, checkpoints=entries))
    assert folders(publisher) == {7, 9} == set(listed(publisher))


def test_whenever_it_dies_only_whole_checkpoints_are_listed_in_the_store_and_a_retry_mends_it(
    publisher, buckets, tmp_path
):
    """A best one that is superseded, a final one and the conclusion; the process dies at every request of that."""
    (tmp_path / "no-tokenizer").mkdir()
    mirror = StoreMirror.of(tmp_path / "first", f"{buckets.new()}/team")

    def publisher_of(number, name):
        root = tmp_path / f"{number}-{name}"
        there = replace(mirror, root=root, uri=f"{mirror.uri}/{number}")
        layout = Layout(f"{there.uri}/out", root / "out", root / ".finetune/uid", root / "out/adapter", there)
        return replace(publisher, layout=layout, tokenizer=tmp_path / "no-tokenizer")

    def live(own):
        own.publish(3, CheckpointType.INTERMEDIATE, {}, saving("three"), best=3)
        checkpoints = own.publish(9, CheckpointType.FINAL, {}, saving("nine"), best=9)
        own.remove_superseded([])
        own.conclude(Report(job_uid="uid", stage=Stage.TRAIN, checkpoints=checkpoints))

    def listed(number):
        found = buckets.below(f"{mirror.uri}/{number}")
        manifest = json.loads(found.get("out/manifest.json", b"{}"))
        return found, {entry["uri"].split("/out/")[1]: entry for entry in manifest.get("checkpoints", ())}

    whole = Death()
    with whole.threatens():
        live(publisher_of(0, "whole"))
    objects, entries = listed(0)
    assert set(entries) == {"checkpoints/step-9"}
    assert len(whole.requests) > 30
    for number in range(1, len(whole.requests) + 1):
        with pytest.raises(Died), Death(number).threatens():
            live(publisher_of(number, "dying"))
        found, shown = listed(number)
        for place, entry in shown.items():
            content = found[f"out/{place}/adapter_model.safetensors"]
            assert hashlib.sha256(content).hexdigest() == entry["sha256"], whole.requests[number - 1]
            assert (
                sum(len(body) for name, body in found.items() if name.startswith(f"out/{place}/")) == entry["sizeBytes"]
            )
        if number % 8:
            continue
        live(publisher_of(number, "another"))
        found, shown = listed(number)
        assert (set(shown), set(found)) == (set(entries), set(objects))
        assert all(found[name] == objects[name] for name in found if name != "out/manifest.json")
