"""What a job names must be permitted and there; what is missing is said with what to do about it."""

from __future__ import annotations

from typing import Any

import pytest

from builders import JOB_UID, NOW, before_start, make_checkpoint, make_job, make_runtime
from finetune_api.job import FineTuneJob
from finetune_api.status import CheckpointType, Condition, ConditionStatus, JobStatus, Reason, Resolved, ResolvedModel
from finetune_operator.plan.decide import decide
from finetune_operator.plan.state import Observed, Plan
from finetune_operator.plan.trainer_config import start_of, trainer_config
from finetune_operator.settings import Settings

LISTED = {"name": "tiny", "source": "hf://org/tiny@abc"}


def look(observed: Observed, **spec: Any) -> Plan:
    """The plan for a job that has not started."""
    return decide(make_job(**spec), observed, Settings(), NOW)


def refusal(observed: Observed, **spec: Any) -> tuple[str, str]:
    """(reason, message) of a job that is not accepted."""
    condition = look(observed, **spec).status.conditions[0]
    assert (condition.type, condition.status) == ("Accepted", ConditionStatus.FALSE)
    return condition.reason, condition.message


def earlier(
    kind: str = "LoRA",
    *,
    ended: str | None = "Complete",
    steps: tuple[int, ...] = (10, 20),
    best: int | None = None,
    evals: int = 0,
) -> FineTuneJob:
    """A job `first` with checkpoints at `steps`, the last one final (and merged too) if it is complete."""
    done = ended == "Complete"
    last = steps[-1] if steps else 0
    checkpoints = tuple(
        make_checkpoint(
            s, CheckpointType.FINAL if done and s == last else CheckpointType.INTERMEDIATE, "first"
        ).model_copy(update={"best": s == best})
        for s in steps
    )
    merged = make_checkpoint(last, CheckpointType.FINAL_MERGED, "first").model_copy(update={"uri": "pvc://c/merged"})
    final = (
        Condition(
            type=ended or "",
            status=ConditionStatus.TRUE,
            reason="Because",
            message="",
            last_transition_time="2026-01-01T00:00:00Z",
        ),
    )
    status = JobStatus(
        start_time="2026-01-01T00:00:00Z",
        conditions=final if ended else (),
        checkpoints=(*checkpoints, merged) if done else checkpoints,
        resolved=Resolved(
            model=ResolvedModel(source="hf://org/tiny", revision="abc"),
            lora_rank=8,
            lora_alpha=24.0,
            trainable_modules=("q_proj",),
        ),
    )
    evaluation = {"validationFile": "pvc://finetune-data/eval.jsonl", "evaluation": {"nEvals": evals}}
    job = make_job("first", uid="uid-of-first", trainingType={"type": kind}, **evaluation)
    return job.model_copy(update={"status": status})


def test_a_job_that_lacks_nothing_starts_and_makes_no_child_yet():
    plan = look(before_start())
    assert plan.status.is_true("Accepted")
    assert (plan.status.start_time, plan.create, plan.look_again_after) == ("2026-01-02T03:04:05Z", (), 0.0)
    assert plan.status.output_name == "team/tiny-6f1c2b3a"
    assert plan.status.resolved.batch_size == 32
    assert plan.status.resolved.lora_rank == 16
    assert plan.status.resolved.trainable_modules == ("all-linear",)


@pytest.mark.parametrize(
    ("runtimes", "spec", "reason", "words"),
    [
        ([], {"runtime": "gpu"}, "RuntimeNotFound", "runtime is gpu"),
        ([], {"runtime": None}, "RuntimeNotFound", "no FineTuneRuntime has spec.default true"),
        ([{"name": "a"}], {"runtime": None}, "RuntimeNotFound", "known: a"),
        (
            [{"name": "a", "default": True}, {"name": "b", "default": True}],
            {"runtime": None},
            "RuntimeAmbiguous",
            "(a, b)",
        ),
    ],
)
def test_the_runtime_must_be_there_and_be_one(runtimes, spec, reason, words):
    found = tuple(make_runtime(**r) for r in runtimes)
    said, message = refusal(Observed(runtimes=found), **spec)
    assert said == reason
    assert words in message


def test_the_default_runtime_serves_a_job_that_names_none():
    runtimes = (make_runtime("a"), make_runtime("b", default=True))
    plan = look(before_start(*runtimes), runtime=None)
    assert plan.status.resolved.runtime.name == "b"


def test_an_invalid_runtime_is_said_to_be_invalid():
    reason, message = refusal(Observed(broken_runtimes={"gpu": "spec.image: Field required"}))
    assert (reason, message) == ("InvalidSpec", "FineTuneRuntime gpu is invalid: spec.image: Field required")


def test_a_missing_claim_comes_with_a_manifest_to_paste():
    reason, message = refusal(before_start(claims=frozenset({"finetune-models"})))
    assert reason == "ClaimNotFound"
    assert message.startswith("trainingFile is pvc://finetune-data/train.jsonl, but namespace team has no")
    assert "kind: PersistentVolumeClaim\nmetadata:\n  name: finetune-data\n  namespace: team\n" in message


def test_a_config_map_and_its_key_must_be_there():
    spec = {"trainingFile": "configmap://rows/train.jsonl"}
    reason, message = refusal(before_start(), **spec)
    assert (reason, "kubectl create configmap rows -n team" in message) == ("ConfigMapNotFound", True)
    reason, message = refusal(before_start(config_maps={"rows": frozenset({"a", "b"})}), **spec)
    assert (reason, "no key train.jsonl; its keys: a, b" in message) == ("ConfigMapNotFound", True)
    assert look(before_start(config_maps={"rows": frozenset({"train.jsonl"})}), **spec).status.start_time


def test_a_missing_service_account_comes_with_the_command():
    reason, message = refusal(before_start(make_runtime(serviceAccountName="trainer")))
    assert reason == "ServiceAccountNotFound"
    assert message.endswith("kubectl create serviceaccount trainer -n team")


@pytest.mark.parametrize("reason", ["ClaimNotFound", "ConfigMapNotFound", "ServiceAccountNotFound"])
def test_what_cannot_be_watched_is_looked_for_again(reason):
    observed = {
        "ClaimNotFound": before_start(claims=frozenset()),
        "ConfigMapNotFound": before_start(),
        "ServiceAccountNotFound": before_start(service_accounts=frozenset()),
    }[reason]
    spec = {"trainingFile": "configmap://rows/t"} if reason == "ConfigMapNotFound" else {}
    plan = look(observed, **spec)
    assert plan.status.conditions[0].reason == reason
    assert plan.look_again_after == Settings().poll_period_seconds


def test_a_job_without_output_anywhere_is_told_to_set_one():
    reason, message = refusal(before_start(), output=None)
    assert (reason, "set output.uri" in message) == ("InvalidSpec", True)


def test_the_runtimes_default_output_expands():
    runtime = make_runtime(defaults={"output": {"uri": "pvc://finetune-models/{namespace}/{name}"}})
    plan = look(before_start(runtime), output=None)
    job = make_job(output=None)
    config = trainer_config(job, runtime.spec, plan.status.resolved, plan.status.output_name)
    assert config.output_uri == "pvc://finetune-models/team/tune"


def test_only_models_of_the_list_may_be_named_where_there_is_one():
    runtime = make_runtime(models=[LISTED])
    reason, message = refusal(before_start(runtime), model="org/tiny")
    assert (reason, "choose one of tiny" in message) == ("ModelNotAllowed", True)
    assert look(before_start(runtime), model="tiny").status.resolved.model.revision == "abc"
    assert refusal(before_start(), model="tiny")[0] == "ModelNotAllowed"


def test_the_frozen_runtime_holds_the_chosen_model_alone():
    runtime = make_runtime(models=[{"name": "other", "source": "hf://org/other"}, LISTED])
    frozen = look(before_start(runtime), model="tiny").status.resolved.runtime
    assert [m["name"] for m in frozen.spec["models"]] == ["tiny"]
    assert (frozen.name, frozen.generation) == ("gpu", 3)


def test_a_runtime_too_large_to_keep_is_refused():
    runtime = make_runtime(podTemplate={"annotations": {f"a{i}": "x" * 4000 for i in range(10)}})
    reason, message = refusal(before_start(runtime))
    assert (reason, "at most 32768 can be kept" in message) == ("LimitExceeded", True)


@pytest.mark.parametrize(
    ("given", "parent", "reason", "words"),
    [
        ("first", None, "CheckpointNotFound", "there is no FineTuneJob first in namespace team"),
        ("first", earlier(ended=None), "CheckpointNotReady", "published steps: 10, 20"),
        ("first:30", earlier(ended=None), "CheckpointNotReady", "published steps: 10, 20"),
        ("first:30", earlier(), "CheckpointNotFound", "published steps: 10, 20"),
        ("first", earlier(ended="Failed"), "CheckpointNotReady", "ended without final checkpoint"),
        ("first:5", earlier(ended="Failed", steps=()), "CheckpointNotFound", "published steps: none"),
        ("first:best", None, "CheckpointNotFound", "there is no FineTuneJob first in namespace team"),
        ("first:best", earlier(), "CheckpointNotFound", "because its evaluation.nEvals is 0: name a step; published"),
        ("first:best", earlier(ended=None), "CheckpointNotFound", "because its evaluation.nEvals is 0: name a step"),
        ("first:best", earlier(ended=None, evals=2, best=10), "CheckpointNotReady", "a better one may follow"),
        ("first:best", earlier(ended="Failed", evals=2), "CheckpointNotFound", "ended without best checkpoint"),
    ],
)
def test_a_checkpoint_must_be_published(given, parent, reason, words):
    said, message = refusal(before_start(parent=parent), model=None, fromCheckpoint=given)
    assert said == reason
    assert words in message


@pytest.mark.parametrize(
    ("given", "ended", "step"),
    [
        ("first", "Complete", 20),
        ("first:20", "Complete", 20),
        ("first:10", None, 10),
        ("first:best", "Complete", 10),
        ("first:best", "Failed", 10),
    ],
)
def test_a_lora_job_goes_on_with_the_adapter_and_inherits_its_shape(given, ended, step):
    parent = earlier(ended=ended, evals=2, best=10)
    plan = look(before_start(parent=parent), model=None, fromCheckpoint=given)
    resolved = plan.status.resolved
    start = start_of(resolved.model)
    assert start.model == "hf://org/tiny@abc"
    assert start.adapter == f"pvc://finetune-models/out/team/first/checkpoints/step-{step}"
    assert start.sha256 == "ab" * 32
    assert (resolved.lora_rank, resolved.lora_alpha, resolved.trainable_modules) == (8, 24.0, ("q_proj",))
    config = trainer_config(make_job(model=None, fromCheckpoint=given), make_runtime().spec, resolved, "x")
    assert (config.lora.rank, config.lora.alpha, config.lora.trainable_modules) == (8, 24.0, ("q_proj",))
    assert plan.status.output_name == "team/tiny-6f1c2b3a"


def test_another_shape_than_the_inherited_one_is_refused():
    reason, message = refusal(
        before_start(parent=earlier()), model=None, fromCheckpoint="first", trainingType={"lora": {"rank": 4}}
    )
    assert reason == Reason.INVALID_SPEC
    assert message == "lora.rank is 4, but the adapter of fromCheckpoint has 8: leave it out"


def test_full_weights_are_the_model_itself_and_a_new_adapter_has_its_own_shape():
    plan = look(before_start(parent=earlier("Full")), model=None, fromCheckpoint="first")
    start = start_of(plan.status.resolved.model)
    assert start.model == "pvc://finetune-models/out/team/first/checkpoints/step-20"
    assert (start.adapter, start.sha256) == (None, "ab" * 32)
    assert plan.status.resolved.lora_rank == 16


def test_full_training_may_start_from_an_adapter():
    plan = look(before_start(parent=earlier()), model=None, fromCheckpoint="first", trainingType={"type": "Full"})
    config = trainer_config(
        make_job(model=None, fromCheckpoint="first", trainingType={"type": "Full"}),
        make_runtime().spec,
        plan.status.resolved,
        "x",
    )
    assert config.lora is None
    assert config.start.adapter.endswith("/checkpoints/step-20")


def test_a_checkpoint_of_a_model_that_the_runtime_does_not_list_is_refused():
    runtime = make_runtime(models=[{"name": "other", "source": "hf://org/other"}])
    reason, _ = refusal(before_start(runtime, parent=earlier()), model=None, fromCheckpoint="first")
    assert reason == "ModelNotAllowed"
    listed = make_runtime(models=[{"name": "any-name", "source": "hf://org/tiny@main"}])
    assert look(before_start(listed, parent=earlier()), model=None, fromCheckpoint="first").status.start_time


def test_full_weights_of_a_model_that_the_runtime_does_not_list_are_refused_too():
    runtime = make_runtime(models=[{"name": "other", "source": "hf://org/other"}])
    reason, message = refusal(before_start(runtime, parent=earlier("Full")), model=None, fromCheckpoint="first")
    assert (reason, "hf://org/tiny" in message) == ("ModelNotAllowed", True)


def test_the_models_limits_hold_for_every_later_generation_of_full_weights():
    full = {"supported": True, "maxBatchSize": 4}
    runtime = make_runtime(models=[{**LISTED, "limits": {"full": full}}])
    spec = {"model": None, "fromCheckpoint": "first", "trainingType": {"type": "Full"}}
    first = look(before_start(runtime), model="tiny", trainingType={"type": "Full"}).status
    for _ in range(3):
        parent = earlier("Full")
        kept = {"resolved": first.resolved, "output_name": first.output_name}
        parent = parent.model_copy(
            update={
                "metadata": parent.metadata.model_copy(update={"uid": JOB_UID}),
                "status": parent.status.model_copy(update=kept),
            }
        )
        first = look(before_start(runtime, parent=parent), **spec).status
        assert (first.resolved.batch_size, first.output_name) == (4, "team/tiny-6f1c2b3a")
    other = make_runtime(models=[{"name": "other", "source": "hf://org/other"}])
    assert refusal(before_start(other, parent=parent), **spec)[0] == "ModelNotAllowed"


def test_the_outputs_name_fits_whatever_the_models_name():
    status = look(before_start(), model=f"org/{'x' * 300}").status
    assert len(status.output_name) < 253
    assert status.output_name.endswith("-6f1c2b3a")
