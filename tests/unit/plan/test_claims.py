"""Claims that several pods mount must be shareable, and a missing one for the output is made where that was allowed."""

from __future__ import annotations

from typing import Any

import pytest

from builders import NAMESPACE, NOW, before_start, make_job, make_runtime
from finetune_api import names
from finetune_api.job import FineTuneJob
from finetune_api.trainer import Stage
from finetune_operator.plan.decide import decide
from finetune_operator.plan.state import Observed, Plan
from finetune_operator.settings import Settings
from lives import look, seen

MAY = Settings(create_claims=True)
TEMPLATE: dict[str, Any] = {
    "labels": {"team": "ml"},
    "annotations": {"note": "results"},
    "spec": {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "5Gi"}}},
}
RUNTIME = make_runtime(claimTemplate=TEMPLATE, limits={"maxNodes": 4})


def verdict(observed: Observed, settings: Settings = MAY, **spec: Any) -> tuple[str, str]:
    """(reason, message) of the Accepted condition."""
    accepted = decide(make_job(**spec), observed, settings, NOW).status.conditions[0]
    return accepted.reason, accepted.message


def modes(data: str, models: str) -> Observed:
    """The two claims with these access modes."""
    found = {"finetune-data": (data,), "finetune-models": (models,)}
    return before_start(make_runtime(limits={"maxNodes": 4}), access_modes=found)


@pytest.mark.parametrize(
    ("data", "models", "expected"),
    [
        ("ReadWriteMany", "ReadWriteMany", None),
        ("ReadOnlyMany", "ReadWriteMany", None),
        ("ReadWriteOnce", "ReadWriteMany", "trainingFile is pvc://finetune-data/train.jsonl, which 2 pods mount, but"),
        ("ReadWriteMany", "ReadWriteOnce", "output.uri is pvc://finetune-models/out, which 2 pods mount, but claim"),
        ("ReadWriteMany", "ReadOnlyMany", "finetune-models is ReadOnlyMany: use a claim that is ReadWriteMany, or set"),
        ("ReadWriteMany", "ReadWriteOncePod", "or set resources.nodes to 1"),
    ],
)
def test_several_pods_need_claims_that_all_can_mount(data, models, expected):
    reason, message = verdict(modes(data, models), resources={"nodes": 2})
    assert reason == ("AccessMode" if expected else "Accepted")
    assert (expected or "runs on") in message


CACHED = make_runtime(limits={"maxNodes": 4}, cache={"uri": "pvc://finetune-cache"})


def test_the_cache_of_the_runtime_must_be_there_and_needs_no_entry_in_access():
    closed = make_runtime(
        cache={"uri": "pvc://weights-of-all"}, access={"claims": {"read": ["finetune-data"], "write": ["finetune-*"]}}
    )
    reason, message = verdict(before_start(closed))
    assert reason == "ClaimNotFound"
    assert message.startswith(
        "cache.uri of FineTuneRuntime gpu is pvc://weights-of-all, but namespace team has no PersistentVolumeClaim"
        " weights-of-all. Create it, for example with:"
    )
    claims = frozenset({"finetune-data", "finetune-models", "weights-of-all"})
    assert verdict(before_start(closed, claims=claims))[0] == "Accepted"


@pytest.mark.parametrize(
    ("mode", "nodes", "expected"),
    [
        ("ReadWriteOnce", 1, "Accepted"),
        ("ReadWriteMany", 2, "Accepted"),
        ("ReadWriteOnce", 2, "AccessMode"),
        ("ReadOnlyMany", 2, "AccessMode"),
    ],
)
def test_a_cache_for_several_nodes_must_be_shareable(mode, nodes, expected):
    shared = ("ReadWriteMany",)
    found = {"finetune-data": shared, "finetune-models": shared, "finetune-cache": (mode,)}
    observed = before_start(CACHED, claims=frozenset(found), access_modes=found)
    assert verdict(observed, resources={"nodes": nodes})[0] == expected


def test_one_pod_takes_any_claim():
    assert verdict(modes("ReadWriteOnce", "ReadWriteOncePod"))[0] == "Accepted"


def test_an_output_in_a_store_needs_no_claim_on_however_many_nodes():
    access = {"uriPrefixes": {"write": ["s3://models/{namespace}/"]}}
    runtime = make_runtime(limits={"maxNodes": 4}, access=access, claimTemplate=TEMPLATE)
    observed = before_start(runtime, access_modes={"finetune-data": ("ReadOnlyMany",)}, claims={"finetune-data"})
    uri = f"s3://models/{NAMESPACE}/support"
    assert verdict(observed, output={"uri": uri}, resources={"nodes": 4})[0] == "Accepted"
    reason, message = verdict(observed, output={"uri": "s3://models/theirs/a"})
    assert reason == "SourceNotAllowed"
    assert 'add "s3://models/theirs/a" to its spec.access.uriPrefixes.write' in message


def test_a_claim_that_cannot_be_shared_is_looked_at_again():
    plan = decide(make_job(resources={"nodes": 2}), modes("ReadWriteOnce", "ReadWriteOnce"), MAY, NOW)
    assert plan.look_again_after == MAY.poll_period_seconds


def without_output() -> Observed:
    return before_start(RUNTIME, claims=frozenset({"finetune-data"}))


def test_a_missing_claim_for_the_output_is_no_obstacle_where_it_will_be_made():
    assert verdict(without_output())[0] == "Accepted"
    assert verdict(without_output(), Settings())[0] == "ClaimNotFound"


def test_only_a_claim_from_which_nothing_is_read_is_made():
    reason, message = verdict(without_output(), trainingFile="pvc://finetune-models/train.jsonl")
    assert (reason, "no PersistentVolumeClaim finetune-models" in message) == ("ClaimNotFound", True)
    assert verdict(before_start(RUNTIME, claims=frozenset()))[0] == "ClaimNotFound"


def test_the_template_too_must_fit_several_pods():
    shared = {"finetune-data": ("ReadWriteMany",)}
    once = make_runtime(
        claimTemplate={"spec": {**TEMPLATE["spec"], "accessModes": ["ReadWriteOnce"]}}, limits={"maxNodes": 4}
    )
    for runtime, expected in ((RUNTIME, "Accepted"), (once, "AccessMode")):
        observed = before_start(runtime, claims=frozenset({"finetune-data"}), access_modes=shared)
        assert verdict(observed, resources={"nodes": 2})[0] == expected


def started() -> FineTuneJob:
    job = make_job()
    return job.model_copy(update={"status": decide(job, without_output(), MAY, NOW).status})


def made(plan: Plan) -> list[str]:
    return [m["kind"] for m in plan.create]


def test_it_is_made_before_the_first_job_and_outlives_it():
    plan = decide(started(), seen(Stage.PREPARE), MAY, NOW)
    assert made(plan) == ["PersistentVolumeClaim", "Job"]
    claim = plan.create[0]
    assert claim["spec"] == TEMPLATE["spec"]
    assert claim["metadata"] == {
        "name": "finetune-models",
        "namespace": NAMESPACE,
        "labels": {"team": "ml", names.MANAGED_BY_LABEL: names.MANAGED_BY, names.JOB_NAME_LABEL: "tune"},
        "annotations": {"note": "results"},
    }


def test_one_that_is_there_is_used_as_it_is():
    assert made(decide(started(), Observed(claims=frozenset({"finetune-models"})), MAY, NOW)) == ["Job"]


def test_without_the_right_to_make_it_nothing_is_tried():
    assert made(look(started(), seen(Stage.PREPARE))) == ["Job"]
