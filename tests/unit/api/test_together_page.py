"""docs/together.md names everything of the anchor's client, each place that it names exists, each manifest is valid."""

from __future__ import annotations

import re
from io import StringIO
from typing import Any

import pytest
from ruamel.yaml import YAML

from finetune_api.crd import job_crd
from finetune_api.job import job_from
from finetune_api.metrics import METRICS
from finetune_api.status import Phase
from manifests import ROOT
from specs import validations

PAGE = (ROOT / "docs" / "together.md").read_text()
PARAMETERS = {
    *("training_file", "model", "n_epochs", "validation_file", "n_evals"),
    *("n_checkpoints", "batch_size", "learning_rate", "lr_scheduler_type", "min_lr_ratio"),
    *("scheduler_num_cycles", "warmup_ratio", "max_grad_norm", "weight_decay", "lora"),
    *("lora_r", "lora_dropout", "lora_alpha", "lora_trainable_modules", "train_vision"),
    *("suffix", "wandb_api_key", "wandb_base_url", "wandb_project_name", "wandb_name"),
    *("verbose", "model_limits", "train_on_inputs", "training_method", "dpo_beta"),
    *("dpo_normalize_logratios_by_length", "rpo_alpha", "simpo_gamma", "from_checkpoint", "from_hf_model"),
    *("hf_model_revision", "hf_api_token", "hf_output_repo_name"),
}
RESPONSE = ["id", "status", "model", "training_file", "output_name"]
STATUSES = {
    *("pending", "queued", "running", "compressing", "uploading"),
    *("cancel_requested", "cancelled", "error", "user_error", "completed"),
}


def section(title: str) -> list[list[str]]:
    """The cells of the rows below a heading."""
    text = re.split(r"\n#+ ", PAGE.split(f"# {title}\n", 1)[1])[0]
    rows = [line for line in text.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows]


def named(cell: str) -> list[str]:
    """What stands in backticks."""
    return re.findall(r"`([^`]+)`", cell)


def test_every_parameter_has_a_row_and_its_place_exists_or_is_said_to_be_missing():
    rows = section("Parameters")
    assert sorted(named(row[0])[0] for row in rows) == sorted(PARAMETERS)
    for _parameter, place, difference in rows:
        assert place or "*not yet*" in difference
        for path in (p for p in named(place) if p.startswith("spec.") and "FineTuneRuntime" not in place):
            assert exists(path), path


def test_every_response_field_and_status_has_a_place():
    rows = section("What comes back")
    assert [named(row[0])[0] for row in rows] == RESPONSE
    paths = [path for row in rows for path in named(row[1]) if path.startswith("status.")]
    assert len(paths) >= 5
    assert [path for path in paths if not exists(path)] == []
    rows = section("Statuses")
    assert sorted(name for row in rows for name in named(row[0])) == sorted(STATUSES)
    words = {word for row in rows for word in re.findall(r"[A-Z][a-z]+ing|Completed|Failed|Cancelled", row[1])}
    assert words - {phase.value for phase in Phase} == set()


def test_every_sentence_is_one_of_a_rule():
    rules = {rule["message"] for rule in validations(job_crd())}
    sentences = [row[2].split(" (and")[0] for row in section("What is refused") if row[1] == "apply"]
    assert len([s for s in sentences if s in rules]) == 7
    assert [s for s in sentences if s not in rules and not s.startswith("the field, ")] == []


def test_every_metric_exists_under_both_names():
    pairs = {(metric.status, metric.log) for metric in METRICS}
    rows = [(named(in_status), named(in_file)) for _, in_status, in_file in section("Metrics")]
    assert len(rows) == 4
    assert {pair for row in rows for pair in zip(*row, strict=True)} <= pairs
    beside = PAGE.split("Beside them: ", 1)[1].split(". KL", 1)[0]
    assert set(named(beside)) <= {metric.status for metric in METRICS}


@pytest.mark.parametrize("text", re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL))
def test_every_manifest_is_valid(text):
    assert job_from(YAML(typ="safe", pure=True).load(StringIO(text))).spec.training_file


def exists(path: str) -> bool:
    """Whether the CRD has that field."""
    node: dict[str, Any] = job_crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    for step in path.split("."):
        node = node.get("properties", {}).get(step, {})
    return bool(node)
