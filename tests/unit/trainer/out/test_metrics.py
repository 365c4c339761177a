"""metrics.jsonl: strict JSON, appended, and cut back to where a saved state left it."""

from __future__ import annotations

import json
import math

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
