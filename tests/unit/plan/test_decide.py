"""The life of a started job, one situation per test: what is made, in which order, and what is said."""

from __future__ import annotations

from dataclasses import replace

import pytest

from builders import (
    NOW_TEXT,
    before_start,
    heard,
    make_child,
    make_job,
    make_pod,
    make_progress,
    make_recovery,
    report_for,
)
from finetune_api.status import (
    ConditionType,
    DataStatus,
    Metrics,
    Phase,
    Reason,
    Resolved,
    ResolvedModel,
)
from finetune_api.trainer import Stage
from finetune_operator.plan.state import ChildJob, Owner, Plan, Waiting
from lives import LATER_TEXT, after, look, message, said, seen, started

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


def test_a_job_whose_vanished_child_has_lost_its_name_does_not_run():
    job = started(Stage.TRAIN)
    own = make_child(job, Stage.TRAIN)
    job = after(job, look(job, seen(Stage.TRAIN, own, make_pod(own))))
    plan = look(job, seen(Stage.TRAIN, ChildJob(name=own.name, uid="x", owner=None)))
    assert said(plan)["Accepted"] == ("False", "NameConflict")
    assert said(plan)["Running"] == ("False", "Pending")
    assert plan.status.phase is Phase.PENDING


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
    assert plan.look_again_after is None, "what it says next wakes the job"
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


def test_a_pod_that_ended_long_ago_has_not_just_been_heard():
    job = started(Stage.TRAIN)
    child = make_child(job, Stage.TRAIN)
    pod = make_pod(child, ended=NOW_TEXT, exit_code=3)
    report = report_for(pod, Stage.TRAIN, progress=make_progress(7))
    plan = look(job, seen(Stage.TRAIN, child, replace(pod, last_word=report.model_dump_json())))
    assert plan.status.progress.last_report_time == NOW_TEXT


def test_nothing_is_being_published_while_no_pod_runs():
    job = started(Stage.TRAIN)
    child = make_child(job, Stage.TRAIN)
    pod = make_pod(child)
    plan = look(job, seen(Stage.TRAIN, child, pod, reports=heard(report_for(pod, Stage.TRAIN, publishing=True))))
    assert said(plan)["Published"] == ("False", "Uploading")
    dead = replace(pod, running=False, ended=NOW_TEXT, exit_code=22)
    plan = look(after(job, plan), seen(Stage.TRAIN, child, dead))
    assert said(plan)["Published"] == ("False", "Pending")
    assert plan.status.phase is Phase.PENDING
