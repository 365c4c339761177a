"""What a pod has told of its end while it ran stands in the status, whoever sees the end or does not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from builders import (
    failed_report,
    heard,
    make_child,
    make_pod,
    make_progress,
    report_for,
)
from finetune_api.failures import FailureCode
from finetune_api.job import FineTuneJob
from finetune_api.report import EarlyStop
from finetune_api.status import Attempt, ConditionType, OutputStatus, Phase, Reason
from finetune_api.trainer import Stage
from finetune_operator.plan.state import ChildJob, Plan, Pod, Waiting
from lives import LATER_TEXT, after, cancelling, look, message, said, seen, started

STOPPED_EARLY = EarlyStop(metric="rewardAccuracy", step=12, evaluations=2, best_step=6, best_value=0.8125)


class Told:
    """A training whose pod has told, while it still ran, that all is done."""

    def __init__(self, stop: EarlyStop | None = None, **spec: Any) -> None:
        job = started(Stage.TRAIN, **spec)
        self.child = make_child(job, Stage.TRAIN)
        self.pod = make_pod(self.child)
        output = OutputStatus(adapter_uri="pvc://finetune-models/out/adapter")
        said = {"early_stop": stop, "progress": make_progress(12), "output": output}
        self.last = report_for(self.pod, Stage.TRAIN, finished=True, **said)
        self.plan = self.look(job, self.child, self.pod)
        self.job = after(job, self.plan)

    def look(self, job: FineTuneJob, child: ChildJob | None, *pods: Pod) -> Plan:
        """One look, by an operator that has asked the pod that runs."""
        asked = any(pod.uid == self.pod.uid for pod in pods)
        return look(job, seen(Stage.TRAIN, child, *pods, reports=heard(self.last) if asked else None))

    def ends(self, *between: tuple[ChildJob | None, tuple[Pod, ...]], child: ChildJob) -> Plan:
        """The pod is gone, and nobody has seen how it ended; `between` is what was seen meanwhile."""
        job = self.job
        for there, pods in between:
            job = after(job, self.look(job, there, *pods))
        return self.look(job, child)


@pytest.mark.parametrize(("stop", "reason"), [(None, "Succeeded"), (STOPPED_EARLY, "EarlyStopped")])
def test_what_a_pod_has_told_stands_though_nobody_saw_it_end(stop, reason):
    """The same final status, whether the pod is still there when its Job is complete or not."""
    told = Told(stop)
    assert said(told.plan)["Published"] == ("True", "Published")
    assert "Complete" not in said(told.plan)
    assert told.plan.status.phase is Phase.PUBLISHING
    assert [(a.reason, a.end_time) for a in told.plan.status.attempts][1:] == [(reason, None)]
    over = replace(told.child, complete=True)
    ended = replace(told.pod, running=False, ended=LATER_TEXT, exit_code=0, last_word=told.last.model_dump_json())
    unseen, watched = told.ends((told.child, ()), child=over), told.look(told.job, over, ended)
    assert said(unseen) == said(watched)
    assert said(unseen)["Complete"] == ("True", reason)
    assert message(unseen, ConditionType.COMPLETE) == message(watched, ConditionType.COMPLETE)
    assert (unseen.status.disruptions, unseen.status.restarts) == (0, 0)
    assert [(a.reason, a.message) for a in unseen.status.attempts] == [
        (a.reason, a.message) for a in watched.status.attempts
    ]
    assert [e.reason for e in unseen.events].count(reason) == 1


def test_what_stands_is_not_forgotten_while_other_things_are_said():
    told = Told(STOPPED_EARLY)
    leaving = replace(told.pod, running=False, leaving=True)
    second = make_pod(told.child, "bbbbb", waiting=Waiting(Reason.UNSCHEDULABLE, "no room"))
    third = make_pod(told.child, "ccccc")
    between = ((told.child, (leaving,)), (told.child, (second,)), (told.child, (third,)), (told.child, ()))
    plan = told.ends(*between, child=replace(told.child, complete=True))
    assert said(plan)["Complete"] == ("True", "EarlyStopped")


def test_a_pod_that_finishes_while_it_is_being_deleted_is_heard():
    job = started(Stage.TRAIN)
    child = make_child(job, Stage.TRAIN)
    leaving = make_pod(child, running=False, leaving=True)
    last = report_for(leaving, Stage.TRAIN, finished=True, early_stop=STOPPED_EARLY, progress=make_progress(12))
    for asked in (job, cancelling(job)):
        plan = look(asked, seen(Stage.TRAIN, child, leaving, reports=heard(last)))
        assert said(plan)["Published"][0] == "True"
        over = replace(child, complete=asked is job, suspended=asked is not job, halted=True)
        unseen = look(after(asked, plan), seen(Stage.TRAIN, over))
        assert said(unseen)["Complete"] == ("True", "EarlyStopped")


@pytest.mark.parametrize("child", [{"suspended": True, "halted": True, "mark": "Cancelled: cancelled"}, None])
def test_what_is_published_is_complete_whatever_becomes_of_its_job(child):
    """Held for a cancel that came later, or deleted by somebody."""
    told = Told()
    told.job = cancelling(told.job)
    there = replace(told.child, **child) if child is not None else None
    assert said(told.look(told.job, there))["Complete"] == ("True", "Succeeded")
    assert "Complete" not in said(told.look(told.job, there, replace(told.pod, running=False, leaving=True)))


def test_what_is_published_is_complete_though_its_pod_was_lost_in_its_last_second():
    told = Told(backoffLimit=0)
    killed = replace(told.pod, running=False, ended=LATER_TEXT, exit_code=137)
    over = told.look(told.job, replace(told.child, failed=True), killed)
    assert said(over)["Complete"] == ("True", "Succeeded")
    assert "Failed" not in said(over)


def test_the_pod_that_takes_the_place_of_one_that_was_done_is_told_of():
    """A done pod was lost before it could end: its results stand, and the next one says whether it waits or runs."""
    told = Told()
    second = make_pod(told.child, "bbbbb", waiting=Waiting(Reason.UNSCHEDULABLE, "no room"))
    waits = told.look(told.job, told.child, second)
    assert (said(waits)["Running"], said(waits)["Published"][0]) == (("False", "Unschedulable"), "True")
    again = report_for(second, Stage.TRAIN, publishing=True, progress=make_progress(12))
    second = replace(second, waiting=None, running=True)
    runs = look(after(told.job, waits), seen(Stage.TRAIN, told.child, second, reports=heard(again)))
    assert (said(runs)["Running"][0], said(runs)["Published"][0]) == ("True", "True")


@pytest.mark.parametrize(
    ("stage", "code", "args", "reason", "words"),
    [
        (Stage.PREPARE, FailureCode.DATA_INVALID, {"count": "2", "file": "t"}, "DataInvalid", "2 "),
        (Stage.TRAIN, FailureCode.DIVERGED, {"step": "4", "learningRate": "1"}, "Diverged", "at step 4"),
        (Stage.TRAIN, FailureCode.STORAGE_FULL, {"uri": "u"}, "StorageFull", "no space is left at u"),
        (Stage.TRAIN, FailureCode.DATA_UNREACHABLE, {"uri": "u", "problem": "p"}, "DataUnreachable", "could not be"),
    ],
)
@pytest.mark.parametrize("leaving", [False, True])
def test_the_cause_that_a_pod_has_told_stands_though_nobody_saw_it_end(stage, code, args, reason, words, leaving):
    job = started(stage, backoffLimit=0)
    child = make_child(job, stage)
    pod = make_pod(child, running=not leaving, leaving=leaving)
    told = look(job, seen(stage, child, pod, reports=heard(failed_report(pod, stage, code, **args))))
    assert "Failed" not in said(told)
    job = after(job, told)
    between = look(job, seen(stage, child))
    over = look(job, seen(stage, replace(child, failed=True, failed_message="exit code 1x, rule 2")))
    assert said(over)["Failed"] == ("True", reason)
    assert words in message(over, ConditionType.FAILED)
    assert [a.reason for a in over.status.attempts][-1] == code.value
    assert over.status.disruptions == 0
    assert [e.reason for e in between.events if e.type == "Warning"] == [code.value]
    assert words in next(e.message for e in between.events if e.reason == code.value)


def test_an_attempt_of_the_other_stage_is_no_cause():
    job = started(Stage.TRAIN)
    attempts = (Attempt(pod="tune-prepare-00001", end_time=LATER_TEXT, reason="DataUnreachable", message="gone"),)
    job = job.model_copy(update={"status": job.status.model_copy(update={"attempts": attempts})})
    child = make_child(job, Stage.TRAIN, failed=True, failed_message="the Job controller's words")
    assert message(look(job, seen(Stage.TRAIN, child)), ConditionType.FAILED) == "the Job controller's words"
