"""Every claim, config map and URI of a job must match the runtime's access; the refusal names the entry to add."""

from __future__ import annotations

from typing import Any

import pytest

from builders import NOW, before_start, conditions, make_checkpoint, make_job, make_runtime
from finetune_api.status import Condition, ConditionStatus, JobStatus, Resolved, ResolvedModel
from finetune_operator.plan.decide import decide
from finetune_operator.settings import Settings

OPEN: dict[str, Any] = {
    "namespaces": ["*"],
    "claims": {"read": ["finetune-*"], "write": ["finetune-*"]},
    "configMaps": ["finetune-*"],
    "uriPrefixes": {"read": ["hf://"], "write": []},
}


def accepted(access: dict[str, Any], parent: Any = None, **spec: Any) -> Condition:
    """The Accepted condition of a job with this spec on a runtime with this access."""
    runtime = make_runtime(access={**OPEN, **access})
    plan = decide(make_job(**spec), before_start(runtime, parent=parent), Settings(), NOW)
    return plan.status.conditions[0]


@pytest.mark.parametrize(
    ("spec", "field", "entry", "where"),
    [
        ({"trainingFile": "pvc://secret/t.jsonl"}, "trainingFile", "secret", "claims.read"),
        (
            {"validationFile": "pvc://secret/v.jsonl"},
            "validationFile",
            "secret",
            "claims.read",
        ),
        ({"trainingFile": "configmap://secret/t.jsonl"}, "trainingFile", "secret", "configMaps"),
        ({"model": "pvc://secret/model"}, "model", "secret", "claims.read"),
        ({"output": {"uri": "pvc://secret/out"}}, "output.uri", "secret", "claims.write"),
    ],
)
def test_a_volume_outside_access_is_refused_with_the_entry_to_add(spec, field, entry, where):
    condition = accepted({}, **spec)
    uri = spec.get(field.split(".")[0])
    value = uri["uri"] if isinstance(uri, dict) else uri
    assert (condition.status, condition.reason) == (ConditionStatus.FALSE, "SourceNotAllowed")
    assert f"{field} is {value}" in condition.message
    assert f'add "{entry}" to its spec.access.{where}' in condition.message


@pytest.mark.parametrize(
    ("spec", "field", "entry"),
    [
        ({"trainingFile": "hf://datasets/acme/prefs/train.jsonl"}, "trainingFile", "hf://datasets/acme/"),
        ({"validationFile": "hf://datasets/acme/prefs/v.jsonl"}, "validationFile", "hf://datasets/acme/"),
        ({"model": "acme/tiny"}, "model", "hf://acme/"),
        ({"model": "hf://acme/tiny@main"}, "model", "hf://acme/"),
    ],
)
def test_a_hub_uri_outside_access_is_refused_with_the_entry_to_add(spec, field, entry):
    closed = {"uriPrefixes": {"read": ["hf://org/", "hf://datasets/org/"], "write": []}}
    condition = accepted(closed, **spec)
    assert condition.reason == "SourceNotAllowed"
    assert condition.message.startswith(f"{field} is ")
    assert f'add "{entry}" to its spec.access.uriPrefixes.read' in condition.message
    allowed = {"uriPrefixes": {"read": ["hf://org/", "hf://datasets/org/", entry], "write": []}}
    assert accepted(allowed, **spec).status is ConditionStatus.TRUE


@pytest.mark.parametrize("scheme", ["s3", "gs", "az"])
@pytest.mark.parametrize("field", ["trainingFile", "validationFile", "model"])
def test_a_store_outside_access_is_refused_with_the_entry_to_add(scheme, field):
    uri = f"{scheme}://acme/some/thing"
    condition = accepted({}, **{field: uri})
    assert condition.reason == "SourceNotAllowed"
    assert condition.message == (
        f"{field} is {uri}, and FineTuneRuntime gpu does not allow this URI:"
        f' add "{scheme}://acme/some/" to its spec.access.uriPrefixes.read, or use another'
    )
    assert accepted({"uriPrefixes": {"read": ["hf://", f"{scheme}://acme/some/"]}}, **{field: uri}).reason == "Accepted"


@pytest.mark.parametrize(
    ("prefix", "uri", "admitted"),
    [
        ("s3://bucket/", "s3://bucket/t.jsonl", True),
        ("s3://bucket", "s3://bucket/t.jsonl", True),
        ("s3://bucket", "s3://bucket-evil/t.jsonl", False),
        ("s3://bucket/", "s3://bucket-evil/t.jsonl", False),
        ("s3://bucket/data", "s3://bucket/data/t.jsonl", True),
        ("s3://bucket/data", "s3://bucket/data", True),
        ("s3://bucket/data", "s3://bucket/database/t.jsonl", False),
        ("s3://bucket/{namespace}/", "s3://bucket/team/t.jsonl", True),
        ("s3://bucket/{namespace}/", "s3://bucket/others/t.jsonl", False),
        ("s3://bucket-{namespace}", "s3://bucket-team/t.jsonl", True),
        ("s3://bucket-{namespace}", "s3://bucket-team-evil/t.jsonl", False),
        ("s3://{namespace}/", "s3://x/team/t.jsonl", False),
        ("s3://bucket-*", "s3://bucket-any/t.jsonl", True),
        ("gs://bucket/", "s3://bucket/t.jsonl", False),
        ("hf://datasets/acme", "hf://datasets/acme/prefs/t.jsonl", True),
        ("hf://datasets/acme", "hf://datasets/acme-evil/prefs/t.jsonl", False),
        ("hf://datasets/acme/prefs", "hf://datasets/acme/prefs@v1/t.jsonl", True),
        ("hf://datasets/acme/prefs", "hf://datasets/acme/prefs-evil@v1/t.jsonl", False),
    ],
)
def test_a_prefix_admits_what_lies_at_it_and_below(prefix, uri, admitted):
    closed = {"uriPrefixes": {"read": ["hf://org/", prefix], "write": []}}
    assert accepted(closed, trainingFile=uri).reason == ("Accepted" if admitted else "SourceNotAllowed")


@pytest.mark.parametrize(
    ("glob", "host", "admitted"),
    [
        ("data.example", "data.example", True),
        ("data.example", "data.example:8443", True),
        ("data.example", "data.example.evil", False),
        ("data.example", "evil-data.example", False),
        ("*.example", "data.example", True),
        ("*.example", "example", False),
        ("{namespace}.example", "team.example", True),
        ("{namespace}.example", "others.example", False),
    ],
)
def test_a_host_is_admitted_by_its_whole_name(glob, host, admitted):
    condition = accepted({"httpsHosts": [glob]}, trainingFile=f"https://{host}/t.jsonl")
    assert condition.reason == ("Accepted" if admitted else "SourceNotAllowed")
    if not admitted:
        name = host.partition(":")[0]
        assert condition.message == (
            f"trainingFile is https://{host}/t.jsonl, and FineTuneRuntime gpu does not allow the host {name}:"
            f' add "{name}" to its spec.access.httpsHosts, or use another'
        )


def test_a_prefix_says_nothing_of_hosts_and_a_host_nothing_of_stores():
    both = {"uriPrefixes": {"read": ["https://data.example/", "hf://"]}, "httpsHosts": ["bucket"]}
    assert accepted(both, trainingFile="https://data.example/t.jsonl").reason == "SourceNotAllowed"
    assert accepted(both, trainingFile="s3://bucket/t.jsonl").reason == "SourceNotAllowed"


def test_a_claim_that_may_be_read_may_not_be_written():
    condition = accepted(
        {"claims": {"read": ["*"], "write": ["finetune-models"]}}, output={"uri": "pvc://finetune-data/out"}
    )
    assert condition.reason == "SourceNotAllowed"
    assert "spec.access.claims.write" in condition.message


def test_a_namespace_outside_access_is_refused():
    condition = accepted({"namespaces": ["other-*"]})
    assert condition.reason == "SourceNotAllowed"
    assert "metadata.namespace is team" in condition.message
    assert 'add "team" to its spec.access.namespaces' in condition.message


def test_namespace_expands_in_a_glob():
    mine = {"claims": {"read": ["{namespace}-*", "finetune-*"], "write": ["finetune-*"]}}
    plan_for = {"trainingFile": "pvc://team-data/t.jsonl"}
    assert accepted(mine, **plan_for).reason == "ClaimNotFound"
    assert accepted(mine, trainingFile="pvc://others-data/t.jsonl").reason == "SourceNotAllowed"


def test_globs_match_whole_names_and_case():
    assert accepted({}, trainingFile="pvc://my-finetune-data/t.jsonl").reason == "SourceNotAllowed"


def test_a_model_of_the_list_needs_no_entry():
    runtime = make_runtime(
        access={**OPEN, "uriPrefixes": {"read": [], "write": []}},
        models=[{"name": "org/tiny", "source": "hf://org/tiny@abc"}],
    )
    plan = decide(make_job(), before_start(runtime), Settings(), NOW)
    assert plan.status.is_true("Accepted")
    assert plan.status.resolved.model == ResolvedModel(source="hf://org/tiny", revision="abc")


def test_a_checkpoint_outside_access_is_refused_even_though_its_job_was_allowed():
    parent = make_job("first", uid="other").model_copy(
        update={
            "status": JobStatus(
                conditions=(
                    Condition(
                        type="Complete",
                        status=ConditionStatus.TRUE,
                        reason="Succeeded",
                        message="",
                        last_transition_time="2026-01-01T00:00:00Z",
                    ),
                ),
                checkpoints=(make_checkpoint(20, job="first"),),
                resolved=Resolved(model=ResolvedModel(source="hf://org/tiny"), lora_rank=8, lora_alpha=16.0),
            )
        }
    )
    closed = {"claims": {"read": ["finetune-data"], "write": ["finetune-models"]}}
    condition = accepted(closed, parent=parent, model=None, fromCheckpoint="first")
    assert condition.reason == "SourceNotAllowed"
    assert condition.message.startswith("fromCheckpoint is pvc://finetune-models/out")
    assert accepted({}, parent=parent, model=None, fromCheckpoint="first").status is ConditionStatus.TRUE


def test_every_refused_job_has_no_children():
    plan = decide(make_job(trainingFile="pvc://secret/t.jsonl"), before_start(), Settings(), NOW)
    assert plan.create == ()
    closed = make_runtime(access=OPEN)
    plan = decide(make_job(trainingFile="pvc://secret/t.jsonl"), before_start(closed), Settings(), NOW)
    assert (plan.create, plan.status.start_time) == ((), None)
    assert conditions(*plan.status.conditions)["Accepted"] == ("False", "SourceNotAllowed")
