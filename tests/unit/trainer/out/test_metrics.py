"""metrics.jsonl: strict JSON, appended, and cut back to where a saved state left it."""

from __future__ import annotations

import json
import math

import pytest

from finetune_trainer.mirror import StoreMirror
from finetune_trainer.out.metrics import MetricsLog


def test_a_line_names_its_stage_and_leaves_out_what_is_not_finite(tmp_path):
    with MetricsLog(tmp_path / "metrics.jsonl", 0) as log:
        log.append(3, "train", {"loss": 0.5, "grad_norm": math.inf})
        log.append(3, "eval", {"loss": 0.25})
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"step": 3, "train/loss": 0.5}, {"step": 3, "eval/loss": 0.25}]


def test_what_was_written_after_the_saved_position_is_cut_off(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path, 0) as log:
        log.append(1, "train", {"loss": 1.0})
        position = log.position()
        log.append(2, "train", {"loss": 2.0})
        assert path.read_text().count("\n") == 2, "each line is there at once"
    with MetricsLog(path, position) as log:
        log.append(2, "train", {"loss": 3.0})
    assert [json.loads(line)["train/loss"] for line in path.read_text().splitlines()] == [1.0, 3.0]


@pytest.fixture
def mirror(buckets, tmp_path):
    return StoreMirror.of(tmp_path, f"{buckets.new()}/team")


def test_a_store_holds_what_a_saved_state_relies_on_and_in_the_end_all(mirror, buckets, tmp_path):
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path, 0, mirror) as log:
        log.append(1, "train", {"loss": 1.0})
        position = log.position()
        log.append(2, "train", {"loss": 2.0})
        assert len(buckets.below(mirror.uri)["metrics.jsonl"]) == position
    assert buckets.below(mirror.uri)["metrics.jsonl"] == path.read_bytes()
    path.unlink()
    with MetricsLog(path, position, mirror) as log:
        log.append(2, "train", {"loss": 3.0})
    lines = buckets.below(mirror.uri)["metrics.jsonl"].splitlines()
    assert [json.loads(line)["train/loss"] for line in lines] == [1.0, 3.0], "cut back on an empty disk too"


def test_what_ended_the_run_is_told_even_if_its_last_lines_cannot_be_put(mirror, buckets, tmp_path):
    def broken():
        with MetricsLog(tmp_path / "metrics.jsonl", 0, mirror):
            buckets.files.rmdir(mirror.uri.removeprefix("s3://").removesuffix("/team"))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        broken()
