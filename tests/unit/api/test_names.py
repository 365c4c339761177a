"""Names derive from the job's, and stay within what Kubernetes takes."""

from __future__ import annotations

import re

import pytest

from finetune_api import names
from finetune_api.uris import OUTPUT_PATTERN

LONGEST_POD_SUFFIX = len("-xxxxx")
LABEL = 63


def test_the_longest_job_leaves_room_for_its_children() -> None:
    longest = "a" * 52
    assert re.fullmatch(names.JOB_NAME_PATTERN, longest)
    assert not re.fullmatch(names.JOB_NAME_PATTERN, longest + "a")
    for child in (names.prepare_job_name(longest), names.train_job_name(longest)):
        assert len(child) <= LABEL, "the Job controller labels its pods with it"
        assert len(child) + LONGEST_POD_SUFFIX <= 253


@pytest.mark.parametrize("name", ["", "A", "1a", "a-", "-a", "a.b", "a_b", "a\n", "ä"])
def test_what_is_no_job_name(name) -> None:
    assert not re.fullmatch(names.JOB_NAME_PATTERN, name)


@pytest.mark.parametrize(
    ("model", "suffix", "expected"),
    [
        ("Qwen/Qwen3-0.6B", "support", "team/qwen3-0.6b-support-6f1c2b3a"),
        ("Qwen/Qwen3-0.6B@main", None, "team/qwen3-0.6b-6f1c2b3a"),
        ("hf://Qwen/Qwen3-0.6B", None, "team/qwen3-0.6b-6f1c2b3a"),
        ("pvc://models/llama/", None, "team/llama-6f1c2b3a"),
        ("tiny", "x", "team/tiny-x-6f1c2b3a"),
        ("s3://models/day=1/Tiny+chat~2", None, "team/tiny-chat-2-6f1c2b3a"),
        ("s3://models/..tiny", None, "team/-tiny-6f1c2b3a"),
        ("Our Model (ä)", None, "team/our-model--6f1c2b3a"),
    ],
)
def test_output_name(model, suffix, expected) -> None:
    assert names.output_name("team", model, suffix, "6f1c2b3a-0000-4000-8000-000000000000") == expected
    assert re.fullmatch(OUTPUT_PATTERN, f"pvc://claim/{expected}"), "or no report about results there is believed"


def test_the_api_version_is_group_and_version() -> None:
    assert f"{names.GROUP}/{names.VERSION}" == names.API_VERSION
