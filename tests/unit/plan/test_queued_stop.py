"""A job in a queue from start to stop: made suspended, held by its Workload, parked where there is none."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from builders import before_start, make_child, make_job, make_pod, make_recovery, report_for
from finetune_api.job import FineTuneJob
from finetune_api.names import QUEUE_LABEL
from finetune_api.status import ConditionType, Phase
from finetune_api.trainer import Stage
from finetune_operator.plan.decide import decide
from finetune_operator.plan.state import ChildJob, Observed, Plan, Workload
from finetune_operator.settings import Settings
from lives import LATER, LATER_TEXT, after, asking, message, said, seen, started

ON = Settings(kueue=True)
WAITING = Workload("job-tune-train-1", "uid-of-workload", said="insufficient unused quota")
ADMITTED = replace(WAITING, reserved=True, said="")
STOPPED = replace(WAITING, active=False)
MARK = "UserRequested: suspended"


def queued(stage: Stage = Stage.TRAIN, **spec: Any) -> FineTuneJob:
    """A started job with a queue."""
    job = started(stage, **spec)
    return job.model_copy(update={"metadata": job.metadata.model_copy(update={"labels": {QUEUE_LABEL: "team"}})})


def child_of(job: FineTuneJob, stage: Stage = Stage.TRAIN, **fields: Any) -> ChildJob:
    """Its child as it waits."""
    waits = {"queue": "team", "suspended": True, "halted": True, "workload": WAITING}
    return make_child(job, stage, **{**waits, **fields})


def look(job: FineTuneJob, observed: Observed) -> Plan:
    """One look of an operator with the switch on."""
    return decide(job, observed, ON, LATER)


def test_without_the_switch_it_is_not_accepted():
    job = make_job()
    job = job.model_copy(update={"metadata": job.metadata.model_copy(update={"labels": {QUEUE_LABEL: "team"}})})
    assert said(decide(job, before_start(), Settings(), LATER))["Accepted"] == ("False", "InvalidSpec")
    assert said(decide(job, before_start(), ON, LATER))["Accepted"] == ("True", "Accepted")


@pytest.mark.parametrize("stage", list(Stage))
def test_both_children_are_made_suspended_in_the_queue(stage):
    made = look(queued(stage), seen(stage)).create
    (child,) = [manifest for manifest in made if manifest["kind"] == "Job"]
    assert child["spec"]["suspend"] is True
    assert child["metadata"]["labels"][QUEUE_LABEL] == "team"
    assert QUEUE_LABEL not in child["spec"]["template"]["metadata"]["labels"]


@pytest.mark.parametrize("stage", list(Stage))
def test_while_it_waits_the_condition_has_kueues_sentence(stage):
    job = queued(stage)
    plan = look(job, seen(stage, child_of(job, stage)))
    kind = ConditionType.RUNNING if stage is Stage.TRAIN else ConditionType.DATA_READY
    assert said(plan)[kind] == ("False", "Queued")
    assert message(plan, kind) == "in queue team: insufficient unused quota"
    assert plan.status.phase is Phase.QUEUED
    assert plan.look_again_after == ON.poll_period_seconds
    assert (plan.suspend, plan.resume, plan.create) == ((), (), ())


def test_a_preemption_is_a_free_disruption_whatever_the_pod_ended_with():
    job = asking(queued(), backoff_limit=0)
    child = child_of(job, suspended=False, halted=False, workload=ADMITTED)
    pod = make_pod(child)
    job = after(job, look(job, seen(Stage.TRAIN, child, pod)))
    for ended in (replace(pod, running=False, ended=LATER_TEXT, exit_code=code) for code in (3, 1, 137)):
        plan = look(job, seen(Stage.TRAIN, child_of(job), ended))
        assert (plan.status.restarts, plan.status.disruptions) == (0, 1)
        assert [a.reason for a in plan.status.attempts][-1] == "Preempted"
        assert said(plan)["Running"] == ("False", "Queued")
        assert next((e.type, e.reason) for e in plan.events) == ("Warning", "Preempted")


def test_a_good_end_that_kueue_did_not_wait_for_is_no_reason_to_forget_the_queue():
    job = queued()
    child = child_of(job)
    pod = make_pod(child, ended=LATER_TEXT, exit_code=0)
    word = report_for(pod, Stage.TRAIN, finished=True).model_dump_json()
    plan = look(job, seen(Stage.TRAIN, child, replace(pod, last_word=word)))
    assert said(plan)["Running"] == ("False", "Queued"), "final now, Kueue would start it once more"


@pytest.mark.parametrize("cancel", [False, True])
def test_a_running_one_is_stopped_by_its_workload_alone(cancel):
    job = queued()
    child = child_of(job, suspended=False, halted=False, workload=ADMITTED)
    pod = make_pod(child)
    job = after(job, look(job, seen(Stage.TRAIN, child, pod)))
    job = asking(job, cancel=True) if cancel else asking(job, suspend=True)
    plan = look(job, seen(Stage.TRAIN, child, pod))
    (held,) = plan.suspend
    mark = "Cancelled: cancelled" if cancel else MARK
    assert held == replace(child, mark=mark, workload=replace(ADMITTED, active=False)), "spec.suspend is Kueue's"
    job = after(job, plan)
    evicted = replace(held, suspended=True, halted=True)
    ended = replace(pod, running=False, ended=LATER_TEXT, exit_code=3)
    plan = look(job, seen(Stage.TRAIN, evicted, ended))
    assert (plan.suspend, plan.look_again_after) == ((), 1.0), "it still has quota: Kueue may yet let it start"
    plan = look(after(job, plan), seen(Stage.TRAIN, replace(evicted, workload=STOPPED), ended))
    assert said(plan)["Failed" if cancel else "Suspended"] == ("True", "Cancelled" if cancel else "UserRequested")
    assert (plan.status.restarts, plan.status.disruptions, plan.look_again_after) == (0, 0, None)


def test_a_stop_that_died_half_way_is_done_again():
    job = asking(queued(), suspend=True)
    marked = child_of(job, mark=MARK)
    (held,) = look(job, seen(Stage.TRAIN, marked)).suspend
    assert held == replace(marked, workload=STOPPED)


def test_what_another_has_deactivated_is_not_ours_to_let_go_on():
    job = queued()
    plan = look(job, seen(Stage.TRAIN, child_of(job, workload=STOPPED)))
    assert (plan.resume, said(plan)["Running"]) == ((), ("False", "Queued"))


def test_it_goes_on_when_its_workload_may():
    job = asking(queued(), suspend=True)
    child = child_of(job, mark=MARK, workload=STOPPED)
    job = asking(after(job, look(job, seen(Stage.TRAIN, child))), suspend=False)
    (released,) = look(job, seen(Stage.TRAIN, child)).resume
    assert released == replace(child, mark=None, workload=WAITING), "and Kueue says when"


def test_without_a_workload_it_leaves_the_queue_and_returns_to_it():
    job = asking(queued(), suspend=True)
    child = child_of(job, workload=None)
    plan = look(job, seen(Stage.TRAIN, child))
    (parked,) = plan.suspend
    assert parked == replace(child, mark=MARK, queue=None, parked="team")
    job = after(job, plan)
    plan = look(job, seen(Stage.TRAIN, parked))
    assert said(plan)["Suspended"] == ("True", "UserRequested")
    job = asking(after(job, plan), suspend=False)
    (released,) = look(job, seen(Stage.TRAIN, parked)).resume
    assert released == child, "suspended as before: Kueue lets it start"


def test_a_saved_step_is_told():
    job = asking(queued(), cancel=True)
    assert job.status is not None
    job = job.model_copy(update={"status": job.status.model_copy(update={"recovery": make_recovery(7)})})
    child = child_of(job, mark="Cancelled: cancelled", workload=STOPPED)
    assert "saved at step 7" in message(look(job, seen(Stage.TRAIN, child)), ConditionType.FAILED)
