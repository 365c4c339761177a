"""How a job ends: well, badly, or by being stopped; the reason, the sentence, and nothing invented."""

from __future__ import annotations

from dataclasses import replace

import pytest

from builders import (
    JOB_UID,
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
from finetune_api.failures import FailureCode
from finetune_api.report import EarlyStop
from finetune_api.status import (
    ConditionType,
    DataError,
    DataStatus,
    OutputStatus,
    Phase,
)
from finetune_api.trainer import Stage
from finetune_operator.plan.decide import decide, refused_child
from finetune_operator.plan.state import Observed
from finetune_operator.settings import NetworkPolicySettings, Settings
from lives import LATER, LATER_TEXT, SETTINGS, after, cancelling, look, message, said, seen, started

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


def test_an_early_stop_is_complete_with_its_own_reason_and_says_what_was_best():
    job = started(Stage.TRAIN)
    child = make_child(job, Stage.TRAIN, complete=True)
    pod = make_pod(child, ended=LATER_TEXT, exit_code=0)
    stop = EarlyStop(metric="rewardAccuracy", step=12, evaluations=2, best_step=6, best_value=0.8125)
    report = report_for(
        pod,
        Stage.TRAIN,
        finished=True,
        early_stop=stop,
        progress=make_progress(12),
        checkpoints=(make_checkpoint(12),),
        output=OutputStatus(adapter_uri="pvc://finetune-models/out/adapter"),
    )
    plan = look(job, seen(Stage.TRAIN, child, replace(pod, last_word=report.model_dump_json())))
    assert said(plan)["Complete"] == ("True", "EarlyStopped")
    assert message(plan, ConditionType.COMPLETE) == (
        "stopped early after step 12 of 20: rewardAccuracy did not improve in 2 evaluations, best 0.8125 at step 6;"
        " published at pvc://finetune-models/out/adapter"
    )
    assert message(plan, ConditionType.PUBLISHED) == "published at pvc://finetune-models/out/adapter"
    assert plan.status.phase is Phase.COMPLETED
    assert plan.status.progress.display == "12/20"


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
        (22, FailureCode.STORAGE_FULL, {"uri": "u"}, "StorageFull", "no space is left at u"),
        (22, FailureCode.OUTPUT_TAKEN, {"uri": "u"}, "PublishFailed", "u holds the output of another job"),
        (10, FailureCode.CONFIG_UNREADABLE, {"field": "a.b", "problem": "p"}, "Internal", "configuration (a.b: p)"),
        (1, FailureCode.STORAGE_FULL, {"uri": "u"}, "BackoffLimitExceeded", "with exit code 1 and left no report"),
        (1, None, {}, "BackoffLimitExceeded", "with exit code 1 and left no report"),
        (12, None, {}, "Internal", "the image is not of its version"),
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
    not_written = reason in ("PublishFailed", "StorageFull")
    assert said(plan)["Published"] == ("False", "UploadFailed" if not_written else "Finished")


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
    assert [(c.name, c.suspended, c.mark) for c in plan.suspend] == [(child.name, True, "Cancelled: cancelled")]
    assert "Failed" not in said(plan)
    job = after(job, plan)
    (halting,) = plan.suspend
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
    (halting,) = plan.suspend
    plan = look(after(job, plan), seen(Stage.TRAIN, replace(halting, halted=True), first, second))
    assert said(plan)["Failed"] == ("True", "OutOfMemory")
    assert message(plan, ConditionType.FAILED).startswith("the pod needed more than its 2Gi of memory twice")


def test_the_api_servers_refusal_of_a_child_is_said():
    job = started()
    plan = look(job, seen(Stage.PREPARE))
    told = refused_child(job, plan, "Job tune-prepare: exceeded quota: pods", SETTINGS, LATER)
    assert said(told)["DataReady"] == ("False", "Pending")
    words = "the API server refused Job tune-prepare: exceeded quota: pods"
    assert message(told, ConditionType.DATA_READY) == words
    assert (told.create, told.look_again_after) == ((), SETTINGS.poll_period_seconds)
    assert [e.reason for e in told.events] == ["ChildRefused"]
    job = after(job, told)
    words = "Job tune-prepare: exceeded quota: pods, used: one more"
    again = refused_child(job, look(job, seen(Stage.PREPARE)), words, SETTINGS, LATER)
    assert again.events == ()


@pytest.mark.parametrize(
    ("stage", "kind", "expected", "words"),
    [
        (Stage.PREPARE, ConditionType.DATA_READY, ("False", "Checking"), "checks the data"),
        (Stage.TRAIN, ConditionType.RUNNING, ("True", "Running"), "trains"),
    ],
)
def test_a_refusal_of_what_stands_beside_the_job_stops_no_pod(stage, kind, expected, words):
    with_policy = Settings(network_policy=NetworkPolicySettings(enabled=True))
    job = started(stage)
    child = make_child(job, stage)
    observed = seen(stage, child, make_pod(child, "aaaaa"))
    plan = decide(job, observed, with_policy, LATER)
    assert [m["kind"] for m in plan.create] == ["NetworkPolicy"]
    told = refused_child(job, plan, "NetworkPolicy tune: exceeded quota", with_policy, LATER)
    assert said(told)[kind] == expected
    name = f"tune-{stage.value.lower()}-aaaaa"
    assert message(told, kind) == f"pod {name} {words}; the API server refused NetworkPolicy tune: exceeded quota"
    assert "ChildRefused" in [e.reason for e in told.events]
    job = after(job, told)
    again = refused_child(job, decide(job, observed, with_policy, LATER), "NetworkPolicy tune: more", SETTINGS, LATER)
    assert again.events == ()


def test_a_refused_stop_does_not_hide_how_a_pod_ended():
    job = cancelling(started(Stage.TRAIN))
    child = make_child(job, Stage.TRAIN)
    dead = make_pod(child, "dead", ended=LATER_TEXT, exit_code=1)
    plan = look(job, seen(Stage.TRAIN, child, dead, make_pod(child, "next", created=LATER_TEXT)))
    assert [e.reason for e in plan.events] == ["NoFinalReport", "Running"]
    told = refused_child(job, plan, "Job tune-train: denied", SETTINGS, LATER)
    assert [e.reason for e in told.events] == ["NoFinalReport", "ChildRefused", "Running"]


def test_a_cancel_after_the_end_is_acknowledged_and_changes_nothing_else():
    job = started(Stage.TRAIN)
    job = after(job, look(job, seen(Stage.TRAIN, make_child(job, Stage.TRAIN, complete=True))))
    late = cancelling(job)
    late = late.model_copy(update={"metadata": late.metadata.model_copy(update={"generation": 2})})
    plan = look(late, Observed())
    assert {c.observed_generation for c in plan.status.conditions} == {2, plan.status.observed_generation}
    assert [(c.type, c.status, c.reason) for c in plan.status.conditions] == [
        (c.type, c.status, c.reason) for c in late.status.conditions
    ]
    assert (plan.status.phase, plan.create, plan.events) == (Phase.COMPLETED, (), ())


def test_a_child_that_failed_because_it_was_stopped_is_told_as_stopped():
    job = cancelling(started(Stage.TRAIN, backoffLimit=0))
    child = make_child(job, Stage.TRAIN, suspended=True, failed=True, failed_message="backoff limit")
    killed = make_pod(child, ended=LATER_TEXT, exit_code=137)
    assert said(look(job, seen(Stage.TRAIN, child, killed)))["Failed"] == ("True", "Cancelled")


def test_an_output_that_cannot_be_written_is_told_before_training():
    job = started()
    child = make_child(job, Stage.PREPARE, failed=True)
    pod = make_pod(child, ended=LATER_TEXT, exit_code=22)
    told = said(look(job, seen(Stage.PREPARE, child, pod)))
    assert (told["DataReady"], told["Failed"]) == (("False", "OutputNotWritable"), ("True", "PublishFailed"))
