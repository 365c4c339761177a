"""The life of a started job, one situation per test: what is made, what is stopped, what is said."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from builders import (
    JOB_UID,
    NOW,
    NOW_TEXT,
    before_start,
    conditions,
    failed_report,
    heard,
    make_checkpoint,
    make_child,
    make_job,
    make_pod,
    make_progress,
    make_recovery,
    report_for,
)
from finetune_api.job import FineTuneJob
from finetune_api.report import FailureCode
from finetune_api.status import (
    ConditionType,
    DataError,
    DataStatus,
    Metrics,
    OutputStatus,
    Phase,
    Reason,
    Resolved,
    ResolvedModel,
)
from finetune_api.trainer import Stage
from finetune_operator.plan.decide import decide, refused_child
from finetune_operator.plan.state import ChildJob, Heard, Observed, Owner, Plan, Pod, Waiting
from finetune_operator.settings import Settings

SETTINGS = Settings()
LATER = NOW + timedelta(seconds=30)
LATER_TEXT = "2026-01-02T03:04:35Z"


def started(stage: Stage = Stage.PREPARE, **spec: Any) -> FineTuneJob:
    """A job after its first look; for TRAIN, with its data ready."""
    job = make_job(**{k: v for k, v in spec.items() if k != "cancel"})
    plan = decide(job, before_start(), SETTINGS, NOW)
    job = job.model_copy(update={"status": plan.status})
    if stage is Stage.TRAIN:
        child = make_child(job, Stage.PREPARE, complete=True)
        pod = make_pod(child, ended=NOW_TEXT, exit_code=0)
        job = job.model_copy(update={"status": look(job, seen(Stage.PREPARE, child, pod)).status})
        assert job.status.is_true(ConditionType.DATA_READY)
    if spec.get("cancel"):
        job = cancelling(job)
    return job


def cancelling(job: FineTuneJob) -> FineTuneJob:
    return job.model_copy(update={"spec": job.spec.model_copy(update={"cancel": True})})


def after(job: FineTuneJob, plan: Plan) -> FineTuneJob:
    """The job once the plan's status is stored."""
    return job.model_copy(update={"status": plan.status})


def seen(stage: Stage, child: ChildJob | None = None, *pods: Pod, reports: dict[str, Heard] | None = None) -> Observed:
    return Observed(children={stage: child} if child else {}, pods={stage: pods} if pods else {}, reports=reports or {})


def look(job: FineTuneJob, observed: Observed) -> Plan:
    return decide(job, observed, SETTINGS, LATER)


def said(plan: Plan) -> dict[str, tuple[str, str]]:
    return conditions(*plan.status.conditions)


def message(plan: Plan, kind: ConditionType) -> str:
    found = plan.status.condition(kind)
    assert found is not None
    return found.message


# --- order -----------------------------------------------------------------------------------------------------------


def test_the_second_look_makes_the_prepare_job():
    plan = look(started(), seen(Stage.PREPARE))
    assert [m["metadata"]["name"] for m in plan.create] == ["tune-prepare"]
    assert plan.status.phase is Phase.PREPARING


def test_no_train_job_is_made_in_the_look_that_finds_the_data_ready():
    job = started()
    child = make_child(job, Stage.PREPARE, complete=True)
    pod = make_pod(child, ended=NOW_TEXT, exit_code=0)
    data = DataStatus(format="preference", rows=100)
    report = report_for(pod, Stage.PREPARE, finished=True, data=data, resolved=Resolved(total_steps=20))
    plan = look(job, seen(Stage.PREPARE, child, replace(pod, last_word=report.model_dump_json())))
    assert said(plan)["DataReady"] == ("True", "DataReady")
    assert message(plan, ConditionType.DATA_READY) == "100 rows, 20 optimiser steps"
    assert (plan.create, plan.look_again_after) == ((), 0.0)
    following = look(after(job, plan), seen(Stage.TRAIN))
    assert [m["metadata"]["name"] for m in following.create] == ["tune-train"]


def test_the_train_pods_configuration_has_the_commit_that_prepare_found():
    job = started()
    child = make_child(job, Stage.PREPARE, complete=True)
    pod = make_pod(child, ended=NOW_TEXT, exit_code=0)
    found = Resolved(
        model=ResolvedModel(source="elsewhere", revision="c0ffee", parameters=7), batch_size=1, lora_rank=1
    )
    report = report_for(pod, Stage.PREPARE, finished=True, resolved=found)
    plan = look(job, seen(Stage.PREPARE, child, replace(pod, last_word=report.model_dump_json())))
    model = plan.status.resolved.model
    assert (model.source, model.revision, model.parameters) == ("hf://org/tiny", "c0ffee", 7)
    assert (plan.status.resolved.batch_size, plan.status.resolved.lora_rank) == (32, 16)
    (train,) = look(after(job, plan), seen(Stage.TRAIN)).create
    annotation = train["spec"]["template"]["metadata"]["annotations"]["finetune.dev/trainer-config"]
    assert '"model":"hf://org/tiny@c0ffee"' in annotation


def test_a_child_that_vanishes_while_running_is_made_again_from_what_was_frozen():
    job = started(Stage.TRAIN)
    plan = look(job, seen(Stage.TRAIN))
    assert plan.create[0]["spec"]["template"]["spec"]["containers"][0]["image"] == "trainer:1"


def test_it_is_not_made_again_while_pods_of_the_vanished_one_may_still_write():
    job = started(Stage.TRAIN)
    child = make_child(job, Stage.TRAIN)
    plan = look(job, seen(Stage.TRAIN, None, make_pod(child)))
    assert plan.create == ()
    assert "waits until tune-train-aaaaa has ended" in message(plan, ConditionType.RUNNING)


def test_a_final_job_is_left_alone_even_without_its_children():
    job = started(Stage.TRAIN)
    child = make_child(job, Stage.TRAIN, complete=True)
    final = look(job, seen(Stage.TRAIN, child))
    assert final.status.is_final
    again = look(after(job, final), seen(Stage.TRAIN))
    assert (again.create, again.status, again.events) == ((), final.status, ())


def test_a_job_that_is_being_deleted_is_left_alone():
    job = make_job()
    going = job.model_copy(update={"metadata": job.metadata.model_copy(update={"deletion_timestamp": NOW_TEXT})})
    assert look(going, before_start()) == Plan(status=look(going, before_start()).status)
    assert look(going, before_start()).status.start_time is None


# --- names that are taken --------------------------------------------------------------------------------------------


def test_anothers_job_of_the_same_name_is_never_adopted():
    foreign = ChildJob(name="tune-prepare", uid="x", owner=Owner("CronJob", "nightly", "y"))
    plan = look(started(), seen(Stage.PREPARE, foreign))
    assert said(plan)["Accepted"] == ("False", "NameConflict")
    assert "is controlled by CronJob nightly" in message(plan, ConditionType.ACCEPTED)
    assert (plan.create, plan.suspend) == ((), ())


@pytest.mark.parametrize(
    "foreign",
    [
        ChildJob(name="tune-prepare", uid="x", owner=None, being_deleted=True),
        ChildJob(name="tune-prepare", uid="x", owner=Owner("FineTuneJob", "tune", "uid of the one before")),
    ],
)
def test_a_leftover_of_an_earlier_job_is_waited_for(foreign):
    plan = look(started(), seen(Stage.PREPARE, foreign))
    assert said(plan)["Accepted"] == ("True", "Accepted")
    assert said(plan)["DataReady"] == ("False", "Pending")
    assert plan.look_again_after is not None
    assert plan.create == ()


# --- running ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "reason", [Reason.UNSCHEDULABLE, Reason.IMAGE_PULL_FAILED, Reason.CONTAINER_CONFIG_ERROR, Reason.INITIALIZING]
)
@pytest.mark.parametrize("stage", list(Stage))
def test_why_a_pod_does_not_run_is_said_in_the_kubelets_words(stage, reason):
    job = started(stage)
    child = make_child(job, stage)
    pod = make_pod(child, waiting=Waiting(reason, "pod x: the kubelet's words"), started=None)
    plan = look(job, seen(stage, child, pod))
    kind = ConditionType.RUNNING if stage is Stage.TRAIN else ConditionType.DATA_READY
    assert said(plan)[kind] == ("False", reason)
    assert message(plan, kind) == "pod x: the kubelet's words"
    assert pod.name not in {a.pod for a in plan.status.attempts}


def test_a_running_pods_progress_enters_the_status():
    job = started(Stage.TRAIN)
    child = make_child(job, Stage.TRAIN)
    pod = make_pod(child)
    report = report_for(
        pod,
        Stage.TRAIN,
        progress=make_progress(7),
        metrics=Metrics(train={"loss": 0.5, "gradNorm": float("nan")}),
        recovery=make_recovery(5),
        resumed_from_step=0,
    )
    plan = look(job, seen(Stage.TRAIN, child, pod, reports=heard(report)))
    assert said(plan)["Running"] == ("True", "Running")
    assert plan.status.phase is Phase.RUNNING
    assert plan.status.progress.display == "7/20"
    assert plan.status.progress.last_report_time == NOW_TEXT
    assert plan.status.metrics.train == {"loss": 0.5}
    assert plan.look_again_after == SETTINGS.poll_period_seconds
    (attempt,) = [a for a in plan.status.attempts if "train" in a.pod]
    assert (attempt.resumed_from_step, attempt.end_time) == (0, None)


def test_publishing_is_said():
    job = started(Stage.TRAIN)
    child = make_child(job, Stage.TRAIN)
    pod = make_pod(child)
    plan = look(job, seen(Stage.TRAIN, child, pod, reports=heard(report_for(pod, Stage.TRAIN, publishing=True))))
    assert said(plan)["Published"] == ("False", "Uploading")
    assert plan.status.phase is Phase.PUBLISHING


def test_a_new_pod_without_report_keeps_the_progress_of_the_one_before():
    job = started(Stage.TRAIN)
    child = make_child(job, Stage.TRAIN)
    first = make_pod(child, "one")
    plan = look(
        job, seen(Stage.TRAIN, child, first, reports=heard(report_for(first, Stage.TRAIN, progress=make_progress(7))))
    )
    ended = replace(first, running=False, ended=LATER_TEXT, exit_code=3)
    second = make_pod(child, "two", created=LATER_TEXT, started=LATER_TEXT)
    plan = look(after(job, plan), seen(Stage.TRAIN, child, ended, second))
    assert plan.status.progress.step == 7
    assert said(plan)["Running"] == ("True", "Running")


# --- good ends -------------------------------------------------------------------------------------------------------


def test_complete_and_published_are_said_together_with_the_output():
    job = started(Stage.TRAIN)
    child = make_child(job, Stage.TRAIN, complete=True)
    pod = make_pod(child, ended=LATER_TEXT, exit_code=0)
    report = report_for(
        pod,
        Stage.TRAIN,
        finished=True,
        progress=make_progress(20),
        checkpoints=(make_checkpoint(20),),
        output=OutputStatus(adapter_uri="pvc://finetune-models/out/adapter"),
    )
    plan = look(job, seen(Stage.TRAIN, child, replace(pod, last_word=report.model_dump_json())))
    assert said(plan)["Complete"] == ("True", "Succeeded")
    assert said(plan)["Published"] == ("True", "Published")
    assert said(plan)["Running"] == ("False", "Finished")
    assert plan.status.phase is Phase.COMPLETED
    assert plan.status.completion_time == LATER_TEXT
    assert plan.status.output.adapter_uri == "pvc://finetune-models/out/adapter"
    assert [c.step for c in plan.status.checkpoints] == [20]
    assert plan.look_again_after is None
    assert ("Normal", "Succeeded") in [(e.type, e.reason) for e in plan.events]


def test_success_without_a_last_word_invents_nothing():
    job = started(Stage.TRAIN)
    child = make_child(job, Stage.TRAIN, complete=True)
    pod = make_pod(child, ended=LATER_TEXT, exit_code=0, last_word="Traceback: not a report")
    plan = look(job, seen(Stage.TRAIN, child, pod))
    assert said(plan)["Complete"] == ("True", "NoFinalReport")
    assert (plan.status.output, plan.status.progress, plan.status.checkpoints) == (None, None, ())


# --- bad ends --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("exit_code", "code", "args", "reason", "words"),
    [
        (10, FailureCode.SEQUENCE_TOO_LONG_FOR_MODEL, {"value": "9", "limit": "8"}, "UserError", "maxSeqLength is 9"),
        (13, FailureCode.MODEL_NOT_FOUND, {"uri": "hf://a/b"}, "ModelUnavailable", "hf://a/b does not exist"),
        (14, FailureCode.OUT_OF_MEMORY, {"tokens": "9", "device": "GPU"}, "OutOfMemory", "9 tokens"),
        (15, FailureCode.DIVERGED, {"step": "4", "learningRate": "1"}, "Diverged", "at step 4"),
        (16, FailureCode.CHECKPOINT_CHANGED, {"uri": "pvc://x"}, "CheckpointInvalid", "pvc://x has another digest"),
        (20, FailureCode.DATA_UNREACHABLE, {"uri": "u", "problem": "p"}, "DataUnreachable", "u could not be read: p"),
        (21, FailureCode.MODEL_UNREACHABLE, {"uri": "u", "problem": "p"}, "ModelUnavailable", "could not be fetched"),
        (22, FailureCode.STORAGE_FULL, {"uri": "u"}, "PublishFailed", "no space is left at u"),
        (1, None, {}, "BackoffLimitExceeded", "with exit code 1 and left no report"),
        (12, None, {}, "UserError", "with exit code 12 and left no report"),
    ],
)
def test_the_exit_code_gives_the_reason_and_the_last_word_the_sentence(exit_code, code, args, reason, words):
    job = started(Stage.TRAIN)
    child = make_child(job, Stage.TRAIN, failed=True, failed_message="the Job controller's words")
    pod = make_pod(child, ended=LATER_TEXT, exit_code=exit_code)
    word = failed_report(pod, Stage.TRAIN, code, **args).model_dump_json() if code else ""
    plan = look(job, seen(Stage.TRAIN, child, replace(pod, last_word=word)))
    assert said(plan)["Failed"] == ("True", reason)
    assert said(plan)["Stalled"] == ("True", reason)
    assert words in message(plan, ConditionType.FAILED)
    assert (plan.status.phase, plan.status.completion_time) == (Phase.FAILED, LATER_TEXT)
    assert said(plan)["Published"] == ("False", "UploadFailed" if reason == "PublishFailed" else "Finished")


def test_bad_rows_are_told_and_no_train_job_is_ever_made():
    job = started()
    child = make_child(job, Stage.PREPARE, failed=True)
    pod = make_pod(child, ended=LATER_TEXT, exit_code=11)
    errors = (
        DataError(line=3, field="preferred_output", code="EmptyAnswer", message="the row's secret content"),
        DataError(line=9, field="", code="FromTheFuture"),
    )
    report = failed_report(pod, Stage.PREPARE, FailureCode.DATA_INVALID, count="2", file="t").model_copy(
        update={"data": DataStatus(rows=10, errors=errors, error_count=2)}
    )
    plan = look(job, seen(Stage.PREPARE, child, replace(pod, last_word=report.model_dump_json())))
    assert said(plan)["Failed"] == ("True", "DataInvalid")
    assert said(plan)["DataReady"] == ("False", "DataInvalid")
    assert [(e.line, e.field, e.message) for e in plan.status.data.errors] == [
        (3, "preferred_output", "the answer is empty: remove the row or write an answer"),
        (9, "", "the row is invalid"),
    ]
    following = look(after(job, plan), seen(Stage.TRAIN))
    assert following.create == ()


def test_errors_cut_from_a_last_word_are_kept_from_the_report_before():
    job = started()
    child = make_child(job, Stage.PREPARE, failed=True)
    pod = make_pod(child, ended=LATER_TEXT, exit_code=11)
    errors = tuple(DataError(line=n, field="", code="InvalidJson") for n in range(1, 6))
    whole = report_for(pod, Stage.PREPARE, data=DataStatus(errors=errors, error_count=5))
    cut = report_for(pod, Stage.PREPARE, finished=True, data=DataStatus(errors=errors[:2], error_count=5))
    pod = replace(pod, last_word=cut.model_dump_json())
    plan = look(job, seen(Stage.PREPARE, child, pod, reports=heard(whole)))
    assert [e.line for e in plan.status.data.errors] == [1, 2, 3, 4, 5]


def test_a_failed_job_whose_pods_are_gone_is_told_in_the_job_controllers_words():
    job = started(Stage.TRAIN)
    child = make_child(job, Stage.TRAIN, failed=True, failed_message="Job has reached the specified backoff limit")
    plan = look(job, seen(Stage.TRAIN, child))
    assert said(plan)["Failed"] == ("True", "BackoffLimitExceeded")
    assert message(plan, ConditionType.FAILED) == "Job has reached the specified backoff limit"


@pytest.mark.parametrize("tampered", [{"job_uid": "another"}, {"pod_uid": "another"}])
def test_a_last_word_about_another_job_or_pod_is_not_believed(tampered):
    job = started(Stage.TRAIN)
    child = make_child(job, Stage.TRAIN, complete=True)
    pod = make_pod(child, ended=LATER_TEXT, exit_code=0)
    report = report_for(pod, Stage.TRAIN, finished=True, **tampered)
    plan = look(job, seen(Stage.TRAIN, child, replace(pod, last_word=report.model_dump_json())))
    assert said(plan)["Complete"] == ("True", "NoFinalReport")


def test_a_pod_of_another_job_is_not_ours_whatever_its_labels_say():
    job = started(Stage.TRAIN)
    child = make_child(job, Stage.TRAIN)
    forged = make_pod(child, "forged", job_uid="not ours")
    report = report_for(forged, Stage.TRAIN, progress=make_progress(20))
    plan = look(job, seen(Stage.TRAIN, child, forged, reports=heard(report)))
    assert plan.status.progress is None
    assert all(a.pod != forged.name for a in plan.status.attempts)


# --- stopping --------------------------------------------------------------------------------------------------------


def test_cancel_before_the_start_is_final_at_once():
    plan = look(cancelling(make_job()), Observed())
    assert said(plan)["Failed"] == ("True", "Cancelled")
    assert (plan.status.phase, plan.create, plan.status.start_time) == (Phase.CANCELLED, (), None)


@pytest.mark.parametrize("stage", list(Stage))
def test_cancel_suspends_the_child_and_ends_when_no_pod_is_left(stage):
    job = started(stage)
    child = make_child(job, stage)
    pod = make_pod(child)
    report = report_for(pod, stage, recovery=make_recovery(12))
    job = cancelling(job)
    plan = look(job, seen(stage, child, pod, reports=heard(report)))
    assert [c.name for c in plan.suspend] == [child.name]
    assert "Failed" not in said(plan)
    job = after(job, plan)
    halting = replace(child, suspended=True)
    plan = look(job, seen(stage, halting, replace(pod, running=False)))
    assert (plan.suspend, "Failed" in said(plan)) == ((), False)
    plan = look(after(job, plan), seen(stage, replace(halting, halted=True)))
    assert said(plan)["Failed"] == ("True", "Cancelled")
    assert message(plan, ConditionType.FAILED) == (
        f"cancelled; saved at step 12; its state is kept at pvc://finetune-models/out/.finetune/{JOB_UID}"
    )
    assert plan.status.disruptions == 0


def test_a_cancel_between_start_and_first_child_makes_none():
    plan = look(started(cancel=True), seen(Stage.PREPARE))
    assert said(plan)["Failed"] == ("True", "Cancelled")
    assert plan.create == ()


def test_a_finish_that_came_before_the_cancel_wins():
    job = cancelling(started(Stage.TRAIN))
    plan = look(job, seen(Stage.TRAIN, make_child(job, Stage.TRAIN, complete=True, suspended=True, halted=True)))
    assert said(plan)["Complete"][0] == "True"
    assert "Failed" not in said(plan)


def test_a_failure_that_came_before_the_cancel_wins():
    job = cancelling(started())
    child = make_child(job, Stage.PREPARE, failed=True)
    pod = make_pod(child, ended=LATER_TEXT, exit_code=11)
    assert said(look(job, seen(Stage.PREPARE, child, pod)))["Failed"] == ("True", "DataInvalid")


def test_a_cancel_that_meets_the_end_of_prepare_never_trains():
    job = cancelling(started())
    plan = look(job, seen(Stage.PREPARE, make_child(job, Stage.PREPARE, complete=True)))
    plan = look(after(job, plan), seen(Stage.TRAIN))
    assert said(plan)["Failed"] == ("True", "Cancelled")
    assert plan.create == ()


def test_killed_for_memory_twice_at_the_same_step_is_final():
    job = started(Stage.TRAIN, backoffLimit=5)
    child = make_child(job, Stage.TRAIN)
    dead = {"ended": LATER_TEXT, "exit_code": 137, "cause": "OOMKilled"}
    first = make_pod(child, "one", **dead)
    plan = look(job, seen(Stage.TRAIN, child, first))
    assert plan.suspend == ()
    second = make_pod(child, "two", created=LATER_TEXT, started=LATER_TEXT, **dead)
    job = after(job, plan)
    plan = look(job, seen(Stage.TRAIN, child, first, second))
    assert [c.name for c in plan.suspend] == ["tune-train"]
    plan = look(after(job, plan), seen(Stage.TRAIN, replace(child, suspended=True, halted=True), first, second))
    assert said(plan)["Failed"] == ("True", "OutOfMemory")
    assert message(plan, ConditionType.FAILED).startswith("the pod needed more than its 2Gi of memory twice")


def test_the_api_servers_refusal_of_a_child_is_said():
    job = started()
    plan = look(job, seen(Stage.PREPARE))
    told = refused_child(job, plan, "exceeded quota: pods", SETTINGS, LATER)
    assert said(told)["DataReady"] == ("False", "Pending")
    words = "the API server refused Job tune-prepare: exceeded quota: pods"
    assert message(told, ConditionType.DATA_READY) == words
    assert (told.create, told.look_again_after) == ((), SETTINGS.poll_period_seconds)
    assert [e.reason for e in told.events] == ["ChildRefused"]
    again = refused_child(
        after(job, told), look(after(job, told), seen(Stage.PREPARE)), "exceeded quota: pods", SETTINGS, LATER
    )
    assert again.events == ()
