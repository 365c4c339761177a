"""The metric table: both spellings, and what has no JSON form."""

from __future__ import annotations

import math
import re

import pytest

from finetune_api.metrics import METRICS, checkpoint_values, status_values
from manifests import ROOT


def test_every_metric_has_one_name_in_each_place():
    assert len({metric.log for metric in METRICS}) == len({metric.status for metric in METRICS}) == len(METRICS)


def test_status_speaks_camel_case_and_leaves_out_what_is_not_finite():
    values = {"loss": 0.5, "rewards/accuracies": 1.0, "grad_norm": math.nan, "kl": -math.inf}
    assert status_values(values) == {"loss": 0.5, "rewardAccuracy": 1.0}


def test_status_holds_six_digits_and_whole_counts():
    values = {"loss": 0.36352421989872513, "learning_rate": 1.23456789e-05, "kl": -1234567.8, "num_tokens": 123456789}
    told = {"loss": 0.363524, "learningRate": 1.23457e-05, "kl": -1234570.0, "tokens": 123456789}
    assert status_values(values) == told
    assert checkpoint_values({"loss": 2 / 3}) == {"evalLoss": 0.666667}


def test_a_checkpoint_carries_its_evaluation():
    assert checkpoint_values({"loss": 0.44, "rewards/accuracies": 0.78}) == {
        "evalLoss": 0.44,
        "evalRewardAccuracy": 0.78,
    }


def test_a_name_outside_the_table_is_an_error():
    with pytest.raises(KeyError):
        status_values({"perplexity": 3.0})


def test_the_page_on_methods_tells_of_every_metric():
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \|", (ROOT / "docs/methods.md").read_text(), re.M)
    told = {pair for status, log in rows for pair in zip(status.split(", "), log.split(", "), strict=False)}
    assert {(metric.status, metric.log) for metric in METRICS} <= told
