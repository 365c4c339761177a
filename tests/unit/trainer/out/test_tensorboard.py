"""Event files: what TensorBoard's own reader finds in them is what was written, whatever earlier processes left."""

from __future__ import annotations

import struct

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from finetune_api.tracking import Tracker, TrackerProblem, Tracking
from finetune_api.trainer import JobIdentity
from finetune_trainer.out.lines import Row
from finetune_trainer.out.tensorboard import EventFile, record
from finetune_trainer.out.tracking import Task, TrackerFailed
from held import series, single, tensorboard_series

ROWS = [
    Row(0, {"eval/loss": 0.7}),
    *(Row(step, {"train/loss": 1 / step, "train/kl": -0.5, "train/kl/chosen": 1e-30}) for step in range(1, 300)),
]


def task(folder, **facts) -> Task:
    return Task(
        tracker=Tracker.TENSORBOARD,
        job=JobIdentity(namespace="ml", name="dpo", uid="1"),
        tracking=Tracking(tensorboard=True),
        metrics=str(folder / "metrics.jsonl"),
        output=str(folder),
        output_uri="pvc://claim/out",
        facts=facts,
    )


def expected(rows):
    return single(series([(row.step, row.values) for row in rows]))


def test_the_reader_finds_every_value_in_single_precision(tmp_path):
    run = EventFile(task(tmp_path))
    run.send(ROWS[:100])
    run.send(ROWS[100:])
    run.close(finished=True)
    assert run.url == "pvc://claim/out/tensorboard"
    assert tensorboard_series(tmp_path / "tensorboard") == expected(ROWS)


def test_the_configuration_is_a_text(tmp_path):
    EventFile(task(tmp_path, trainingMethod={"type": "DPO", "é": "ß" * 200}))
    events = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"tensors": 0}).Reload()
    (event,) = events.Tensors("configuration")
    assert '"type": "DPO"' in event.tensor_proto.string_val[0].decode()
    assert events.SummaryMetadata("configuration").plugin_data.plugin_name == "text"


def test_a_later_process_shows_one_run_and_leaves_few_files(tmp_path):
    EventFile(task(tmp_path)).send(ROWS[:50])
    looking_on = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"scalars": 0})
    looking_on.Reload()
    EventFile(task(tmp_path)).send(ROWS[:45])
    looking_on.Reload()
    again = EventFile(task(tmp_path))
    again.send(ROWS[:30])
    again.send(ROWS[30:60])
    assert len(list((tmp_path / "tensorboard").iterdir())) == 2
    assert tensorboard_series(tmp_path / "tensorboard") == expected(ROWS[:60])
    steps = [event.step for event in looking_on.Reload().Scalars("train/loss")]
    assert steps == list(range(1, 60)), "a TensorBoard that was looking on shows each step once"


def test_a_file_that_is_gone_is_not_begun_anew_without_its_head(tmp_path):
    run = EventFile(task(tmp_path))
    (file,) = (tmp_path / "tensorboard").iterdir()
    file.unlink()
    with pytest.raises(TrackerFailed, match="No such file") as failed:
        run.send(ROWS)
    assert failed.value.problem is TrackerProblem.NOT_WRITABLE
    assert list((tmp_path / "tensorboard").iterdir()) == []


def test_a_folder_that_cannot_be_made_is_a_named_failure(tmp_path):
    (tmp_path / "tensorboard").write_text("in the way")
    with pytest.raises(TrackerFailed) as failed:
        EventFile(task(tmp_path))
    assert (failed.value.problem, failed.value.detail) == (TrackerProblem.NOT_WRITABLE, "File exists")


def test_a_record_has_the_checksums_of_the_format():
    """The CRC-32C of the empty string is 0; that of the eight bytes of its length is 0x8C28B28A."""
    mask = 0xA282EAD8
    turned = (0x8C28B28A >> 15 | 0x8C28B28A << 17) & 0xFFFFFFFF
    assert record(b"") == struct.pack("<QII", 0, (turned + mask) & 0xFFFFFFFF, mask)
