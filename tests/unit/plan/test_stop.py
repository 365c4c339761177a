"""The one way to stop: held with a mark, over when nothing runs, let go on only by who held it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from builders import NOW_TEXT, before_start, failed_report, make_child, make_job, make_pod, make_recovery, report_for
from finetune_api.failures import Failure, FailureCode
from finetune_api.status import Attempt, ConditionType, Phase, Reason
from finetune_api.trainer import Stage
from finetune_operator.plan.attempts import MAX_FREE
from finetune_operator.plan.state import Waiting
from lives import LATER_TEXT, after, asking, cancelling, look, message, said, seen, started

HELD = {"suspended": True, "mark": "UserRequested: suspended"}


def suspended(stage=Stage.TRAIN, **spec):
    """A job that was running and has been suspended, and its held Job."""
    job = asking(started(stage, **spec), suspend=True)
    child = make_child(job, stage, halted=True, **HELD)
    job = after(job, look(job, seen(stage, child)))
    assert said(look(job, seen(stage, child)))["Suspended"] == ("True", "UserRequested")
    return job, child


@pytest.mark.parametrize("stage", list(Stage))
def test_suspend_holds_the_child_and_is_true_when_no_pod_is_left(stage):
    job = started(stage)
    child = make_child(job, stage)
    pod = make_pod(child)
    job = after(job, look(job, seen(stage, child, pod)))
    job = asking(job, suspend=True)
    plan = look(job, seen(stage, child, pod))
    assert plan.suspend == (replace(child, **HELD),)
    assert "Suspended" not in said(plan)
    saving = replace(pod, running=False)
    plan = look(after(job, plan), seen(stage, replace(child, **HELD), saving))
    assert (plan.suspend, plan.look_again_after is not None) == ((), True)
    kind = ConditionType.RUNNING if stage is Stage.TRAIN else ConditionType.DATA_READY
    assert message(plan, kind) == f"stopping: pod {pod.name} saves its state and leaves"
    assert "Suspended" not in said(plan)
    ended = replace(saving, ended=LATER_TEXT, exit_code=3)
    plan = look(after(job, plan), seen(stage, replace(child, halted=True, **HELD), ended))
    assert said(plan)["Suspended"] == ("True", "UserRequested")
    assert said(plan)[kind] == ("False", "Suspended")
    assert (plan.status.phase, plan.status.completion_time) == (Phase.SUSPENDED, None)
    assert (plan.suspend, plan.resume, plan.create, plan.look_again_after) == ((), (), (), None)


def test_the_sentence_has_the_saved_step_and_how_it_goes_on():
    job = asking(started(Stage.TRAIN), suspend=True)
    child = make_child(job, Stage.TRAIN, halted=True, **HELD)
    pod = make_pod(child, ended=LATER_TEXT, exit_code=3)
    word = failed_report(pod, Stage.TRAIN, FailureCode.STOPPED, step="12").model_copy(
        update={"recovery": make_recovery(12)}
    )
    plan = look(job, seen(Stage.TRAIN, child, replace(pod, last_word=word.model_dump_json())))
    told = "suspended; saved at step 12; set spec.suspend to false to go on"
    assert message(plan, ConditionType.SUSPENDED) == told


def test_the_controllers_word_is_waited_for_even_if_no_pod_is_seen():
    job = asking(started(Stage.TRAIN), suspend=True)
    plan = look(job, seen(Stage.TRAIN, make_child(job, Stage.TRAIN, **HELD)))
    assert "Suspended" not in said(plan)


@pytest.mark.parametrize("end", [{"exit_code": 3}, {"exit_code": 137}, {"exit_code": 1}, {"gone": True}])
def test_ends_by_our_own_stop_are_neither_restarts_nor_disruptions(end):
    job = asking(started(Stage.TRAIN, backoffLimit=0), suspend=True)
    child = make_child(job, Stage.TRAIN, halted=True, **HELD)
    plan = look(job, seen(Stage.TRAIN, child, make_pod(child, ended=LATER_TEXT, **end)))
    assert (plan.status.restarts, plan.status.disruptions) == (0, 0)
    assert plan.status.attempts[-1].end_time == LATER_TEXT
    assert said(plan)["Suspended"][0] == "True"


def test_a_failure_before_the_job_was_held_counts():
    job = asking(started(Stage.TRAIN), suspend=True)
    child = make_child(job, Stage.TRAIN)
    plan = look(job, seen(Stage.TRAIN, child, make_pod(child, ended=LATER_TEXT, exit_code=1)))
    assert plan.status.restarts == 1


def test_suspended_between_the_stages_no_train_job_is_made_until_it_goes_on():
    job = asking(started(Stage.TRAIN), suspend=True)
    plan = look(job, seen(Stage.TRAIN))
    assert (said(plan)["Suspended"], plan.create) == (("True", "UserRequested"), ())
    assert message(plan, ConditionType.SUSPENDED).startswith("suspended; no state was saved")
    job = asking(after(job, plan), suspend=False)
    plan = look(job, seen(Stage.TRAIN))
    assert [m["metadata"]["name"] for m in plan.create if m["kind"] == "Job"] == ["tune-train"]
    assert said(plan)["Suspended"] == ("False", "Resumed")


def test_resume_lets_the_held_job_go_on():
    job, child = suspended()
    plan = look(asking(job, suspend=False), seen(Stage.TRAIN, child))
    assert plan.resume == (replace(child, suspended=False, mark=None),)
    assert said(plan)["Suspended"] == ("False", "Resumed")
    assert said(plan)["Running"] == ("False", "Initializing")


def test_ends_are_written_down_before_the_job_goes_on():
    """A crash after the resume must not make our own stop look like a failure."""
    job = asking(started(Stage.TRAIN), suspend=True)
    child = make_child(job, Stage.TRAIN)
    pod = make_pod(child)
    job = asking(after(job, look(job, seen(Stage.TRAIN, child, pod))), suspend=False)
    ended = seen(Stage.TRAIN, replace(child, halted=True, **HELD), replace(pod, ended=LATER_TEXT, exit_code=137))
    plan = look(job, ended)
    assert (plan.resume, plan.look_again_after) == ((), 0.0)
    assert plan.status.restarts == 0
    plan = look(after(job, plan), ended)
    assert [c.suspended for c in plan.resume] == [False]
    assert plan.status.restarts == 0


def test_it_goes_on_only_when_the_pods_of_the_stop_have_ended():
    """Its old pod is told to stop already: let go on now, its end would look like a failure."""
    job = started(Stage.TRAIN, backoffLimit=0)
    child = make_child(job, Stage.TRAIN, **HELD)
    leaving = make_pod(child, running=False)
    job = after(job, look(job, seen(Stage.TRAIN, child, leaving)))
    for observed in (seen(Stage.TRAIN, child, leaving), seen(Stage.TRAIN, replace(child, halted=True), leaving)):
        plan = look(job, observed)
        assert (plan.resume, plan.look_again_after is not None) == ((), True)
        assert message(plan, ConditionType.RUNNING) == f"stopping: pod {leaving.name} saves its state and leaves"
    ended = seen(Stage.TRAIN, replace(child, halted=True), replace(leaving, ended=LATER_TEXT, exit_code=137))
    plan = look(job, ended)
    assert (plan.resume, plan.status.restarts) == ((), 0)
    assert [c.suspended for c in look(after(job, plan), ended).resume] == [False]


def test_one_that_somebody_else_lets_go_on_meanwhile_only_loses_its_mark():
    job = started(Stage.TRAIN)
    child = make_child(job, Stage.TRAIN, mark="UserRequested: suspended")
    pod = make_pod(child)
    job = after(job, look(job, seen(Stage.TRAIN, child, pod)))
    assert [(c.suspended, c.mark) for c in look(job, seen(Stage.TRAIN, child, pod)).resume] == [(False, None)]


@pytest.mark.parametrize("ran", [False, True])
def test_a_job_that_somebody_else_holds_stays_theirs(ran):
    job = started(Stage.TRAIN)
    child = make_child(job, Stage.TRAIN, suspended=True, halted=True)
    pods = [make_pod(child, ended=LATER_TEXT, exit_code=3)] if ran else []
    plan = look(job, seen(Stage.TRAIN, child, *pods))
    assert (plan.status.restarts, plan.status.disruptions) == (0, 0)
    assert (plan.resume, plan.suspend) == ((), ())
    assert said(plan)["Running"] == ("False", "Pending")
    assert "is suspended, and not by this operator" in message(plan, ConditionType.RUNNING)


def test_a_held_job_that_vanished_is_made_again_on_resume_only():
    job, _ = suspended()
    plan = look(job, seen(Stage.TRAIN))
    assert (said(plan)["Suspended"][0], plan.create) == ("True", ())
    plan = look(asking(job, suspend=False), seen(Stage.TRAIN))
    assert "Job" in [m["kind"] for m in plan.create]


def test_a_held_job_that_somebody_else_lets_go_is_held_again():
    job, child = suspended()
    plan = look(job, seen(Stage.TRAIN, replace(child, suspended=False, halted=False)))
    assert [c.suspended for c in plan.suspend] == [True]


def test_cancel_while_suspended_is_final_at_once():
    job, child = suspended()
    plan = look(cancelling(job), seen(Stage.TRAIN, child))
    assert said(plan)["Failed"] == ("True", "Cancelled")
    assert said(plan)["Suspended"] == ("False", "Finished")
    assert (plan.status.phase, plan.suspend, plan.resume) == (Phase.CANCELLED, (), ())


def test_cancel_goes_before_suspend():
    job = asking(started(Stage.TRAIN), suspend=True, cancel=True)
    child = make_child(job, Stage.TRAIN)
    assert [c.mark for c in look(job, seen(Stage.TRAIN, child, make_pod(child))).suspend] == ["Cancelled: cancelled"]


def test_a_final_stop_once_begun_is_not_taken_back():
    """Its cause may be out of sight: the pod that was killed for memory twice is gone."""
    job = started(Stage.TRAIN)
    mark = "OutOfMemory: the pod needed more than its 2Gi of memory twice"
    child = make_child(job, Stage.TRAIN, suspended=True, halted=True, mark=mark)
    plan = look(job, seen(Stage.TRAIN, child))
    assert said(plan)["Failed"] == ("True", "OutOfMemory")
    assert message(plan, ConditionType.FAILED) == "the pod needed more than its 2Gi of memory twice"


@pytest.mark.parametrize("mark", ["", "Nonsense: x", "UserRequested: suspended", "Cancelled"])
def test_a_mark_that_asks_for_nothing_final(mark):
    job = started(Stage.TRAIN)
    child = make_child(job, Stage.TRAIN, suspended=True, halted=True, mark=mark)
    plan = look(job, seen(Stage.TRAIN, child))
    assert ("Failed" in said(plan)) == (mark == "Cancelled")


def test_a_stop_that_waits_for_a_lost_node_says_so():
    job = cancelling(started(Stage.TRAIN))
    child = make_child(job, Stage.TRAIN, **HELD)
    lost = Waiting(Reason.NODE_LOST, "pod p: its node n does not answer")
    plan = look(job, seen(Stage.TRAIN, child, make_pod(child, waiting=lost)))
    assert said(plan)["Running"] == ("False", "NodeLost")
    assert message(plan, ConditionType.RUNNING) == f"stopping: {lost.message}"


@pytest.mark.parametrize(
    ("reason", "words"),
    [("Preempted", "higher priority"), ("NodeLost", "have the nodes looked after"), ("PodVanished", "by whom")],
)
def test_too_many_stops_from_outside_end_the_job_and_name_who_did_it(reason, words):
    job = started(Stage.TRAIN)
    ended = Attempt(pod="tune-train-zzzzz", start_time=NOW_TEXT, end_time=NOW_TEXT, reason=reason)
    status = job.status.model_copy(update={"disruptions": MAX_FREE, "attempts": (ended,)})
    child = make_child(job, Stage.TRAIN)
    (held,) = look(job.model_copy(update={"status": status}), seen(Stage.TRAIN, child, make_pod(child))).suspend
    assert held.mark.startswith("BackoffLimitExceeded: stopped 100 times from outside")
    assert words in held.mark


@pytest.mark.parametrize("exit_code", [0, 3])
def test_work_that_was_done_before_the_stop_is_done(exit_code):
    """Of a held Job's pods the Job controller counts none, so the pod's own last word stands; 3 where it was stopped
    before anybody had heard of it."""
    job = cancelling(started(Stage.TRAIN))
    child = make_child(job, Stage.TRAIN, halted=True, **HELD)
    pod = make_pod(child, ended=LATER_TEXT, exit_code=exit_code)
    word = report_for(pod, Stage.TRAIN, finished=True).model_dump_json()
    assert said(look(job, seen(Stage.TRAIN, child, replace(pod, last_word=word))))["Complete"][0] == "True"
    unfinished = report_for(pod, Stage.TRAIN, finished=True, failure=Failure(code=FailureCode.STOPPED))
    cut = replace(pod, last_word=unfinished.model_dump_json())
    assert said(look(job, seen(Stage.TRAIN, child, cut)))["Failed"] == ("True", "Cancelled")
    assert said(look(job, seen(Stage.TRAIN, child, pod)))["Failed"] == ("True", "Cancelled"), "no word, no proof"


def test_suspended_before_the_start_it_is_checked_and_not_started():
    job = make_job(suspend=True)
    plan = look(job, before_start())
    assert said(plan)["Accepted"] == ("True", "Accepted")
    assert said(plan)["Suspended"] == ("True", "UserRequested")
    assert (plan.status.phase, plan.status.start_time, plan.status.resolved) == (Phase.SUSPENDED, None, None)
    wrong = look(asking(job, runtime="none"), before_start())
    assert said(wrong)["Accepted"] == ("False", "RuntimeNotFound")
    assert said(wrong)["Suspended"] == ("True", "UserRequested")
    plan = look(asking(after(job, plan), suspend=False), before_start())
    assert said(plan)["Suspended"] == ("False", "Resumed")
    assert plan.status.start_time is not None


def test_cancel_of_one_that_was_suspended_before_it_started():
    job = make_job(suspend=True)
    plan = look(cancelling(after(job, look(job, before_start()))), before_start())
    assert said(plan)["Failed"] == ("True", "Cancelled")
    assert said(plan)["Suspended"] == ("False", "Finished")


def test_a_job_that_was_never_suspended_says_nothing_of_it():
    job = started(Stage.TRAIN)
    child = make_child(job, Stage.TRAIN)
    assert "Suspended" not in said(look(job, seen(Stage.TRAIN, child, make_pod(child))))
