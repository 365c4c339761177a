"""Running time and its deadline, counted in whatever steps the looks come; and the time after the end."""

from __future__ import annotations

import itertools
from dataclasses import replace
from datetime import timedelta

import pytest

from builders import NOW, before_start, make_child, make_job, make_pod, make_recovery, make_runtime, report_for
from finetune_api.failures import Failure, FailureCode
from finetune_api.status import Attempt, ConditionType, JobStatus
from finetune_api.trainer import Stage
from finetune_operator.plan.decide import decide, ours
from finetune_operator.plan.lifetime import ran, with_running_time
from finetune_operator.plan.state import timestamp
from lives import LATER, LATER_TEXT, SETTINGS, after, asking, cancelling, look, message, said, seen, started


def at(seconds: float) -> str:
    """A time, in seconds after the start."""
    return timestamp(NOW + timedelta(seconds=seconds))


def ran_of(pods: list[tuple[float, float]], looks: list[float]) -> tuple[int, str | None]:
    """activeSeconds and activeSince of pods that run from and to these seconds, looked at in these seconds."""
    status = JobStatus()
    for moment in looks:
        attempts = tuple(
            Attempt(pod=f"pod-{n}", start_time=at(begin), end_time=at(end) if end <= moment else None)
            for n, (begin, end) in enumerate(pods)
            if begin <= moment
        )
        status = with_running_time(status.model_copy(update={"attempts": attempts}), status.attempts)
    return status.active_seconds, status.active_since


LOOKS = [looks for n in range(5) for looks in itertools.combinations([12, 20, 25, 33, 41], n)]


@pytest.mark.parametrize(
    ("pods", "seconds"),
    [
        ([(10, 20)], 10),
        ([(10, 20), (20, 30)], 20),
        ([(10, 20), (30, 40)], 20),
        ([(10, 30), (20, 40)], 30),
        ([(10, 40), (15, 20)], 30),
        ([(10, 25), (11, 26), (12, 24), (30, 38)], 24),
    ],
)
@pytest.mark.parametrize("looks", LOOKS, ids=str)
def test_running_time_does_not_depend_on_when_somebody_looks(pods, seconds, looks):
    assert ran_of(pods, [*looks, 50, 60]) == (seconds, None)


def test_what_runs_is_counted_from_the_pods_own_start():
    assert ran_of([(10, 99)], [12, 40]) == (0, at(10))
    status = JobStatus(active_seconds=7, active_since=at(10))
    assert ran(status, NOW + timedelta(seconds=40)) == 37
    assert ran(status, NOW) == 7, "a node's clock may be ahead"


def test_an_operator_that_was_away_counts_the_pods_that_are_too_many_to_be_kept_too():
    job = started(Stage.TRAIN, backoffLimit=20)
    child = make_child(job, Stage.TRAIN)
    runs = [{"created": at(t), "started": at(t), "ended": at(t + 100)} for t in range(200, 1800, 200)]
    pods = [make_pod(child, f"{n:05d}", exit_code=1, **run) for n, run in enumerate(runs)]
    plan = look(job, seen(Stage.TRAIN, child, *pods))
    assert (plan.status.restarts, plan.status.active_seconds) == (8, 800)
    assert look(after(job, plan), seen(Stage.TRAIN, child, *pods)).status == plan.status


def test_a_pod_that_never_ran_costs_nothing():
    status = JobStatus(attempts=(Attempt(pod="a", end_time=at(30)),))
    assert with_running_time(status, ()).active_seconds == 0


def test_running_time_is_in_the_status_from_the_first_pod_to_the_last():
    job = started()
    child = make_child(job, Stage.PREPARE)
    pod = make_pod(child, started=at(5))
    running = look(job, seen(Stage.PREPARE, child, pod)).status
    assert (running.active_seconds, running.active_since) == (0, at(5))
    job = job.model_copy(update={"status": running})
    ended = look(job, seen(Stage.PREPARE, child, replace(pod, ended=at(25), exit_code=20))).status
    assert (ended.active_seconds, ended.active_since) == (20, None)


def test_a_final_job_runs_no_more():
    job = started(Stage.TRAIN)
    child = make_child(job, Stage.TRAIN)
    pod = make_pod(child, started=at(5))
    job = after(job, look(job, seen(Stage.TRAIN, child, pod)))
    status = look(job, seen(Stage.TRAIN, replace(child, complete=True), pod)).status
    assert (status.active_seconds, status.active_since) == (25, None)


# --- deadline --------------------------------------------------------------------------------------------------------


def running(seconds: int = 0, **spec):
    """A training job with a pod that runs since 0 s, and what is seen of it at 30 s."""
    job = started(Stage.TRAIN, **spec)
    job = job.model_copy(update={"status": job.status.model_copy(update={"active_seconds": seconds})})
    child = make_child(job, Stage.TRAIN)
    pod = make_pod(child, started=at(0))
    return job, seen(Stage.TRAIN, child, pod, reports={}), child, pod


def test_the_next_look_comes_when_the_time_is_out():
    job, observed, _, _ = running(10, activeDeadlineSeconds=100)
    plan = look(job, observed)
    assert (plan.suspend, plan.look_again_after) == ((), 60.0)


def test_a_job_whose_time_is_out_saves_and_ends():
    job, observed, _, pod = running(70, activeDeadlineSeconds=100)
    plan = look(job, observed)
    (held,) = plan.suspend
    assert held.mark == "DeadlineExceeded: ran for 100 s, all that activeDeadlineSeconds allows"
    stopped = Failure(code=FailureCode.STOPPED, args={"step": "12"})
    report = report_for(pod, Stage.TRAIN, finished=True, failure=stopped, recovery=make_recovery(12))
    dead = replace(pod, running=False, ended=at(29), exit_code=3, last_word=report.model_dump_json())
    plan = look(after(job, plan), seen(Stage.TRAIN, replace(held, halted=True), dead))
    assert plan.status.active_seconds == 99, "of whole seconds one may be missing, and the stop stands"
    assert said(plan)["Failed"] == ("True", "DeadlineExceeded")
    sentence = message(plan, ConditionType.FAILED)
    assert sentence.startswith("ran for 100 s, all that activeDeadlineSeconds allows; saved at step 12; its state is")


def test_time_in_which_nothing_runs_does_not_count():
    job, _, child, _ = running(99, activeDeadlineSeconds=100)
    plan = look(job, seen(Stage.TRAIN, child))
    assert (plan.suspend, plan.look_again_after, plan.status.active_seconds) == ((), None, 99)


def test_a_job_whose_time_is_out_makes_no_child():
    job, _, _, _ = running(100, activeDeadlineSeconds=100)
    plan = look(job, seen(Stage.TRAIN))
    assert (plan.create, said(plan)["Failed"]) == ((), ("True", "DeadlineExceeded"))


def test_a_deadline_may_be_raised_or_set_while_the_job_runs():
    job, observed, _, _ = running(70, activeDeadlineSeconds=100)
    assert look(asking(job, active_deadline_seconds=None), observed).suspend == ()
    assert look(asking(job, active_deadline_seconds=101), observed).look_again_after == 1.0
    job, observed, _, _ = running(70)
    assert [c.suspended for c in look(asking(job, active_deadline_seconds=50), observed).suspend] == [True]


def limited(most: int, **spec):
    """A job before its start, on a runtime that limits running time."""
    return decide(
        make_job(**spec), before_start(make_runtime(limits={"maxActiveDeadlineSeconds": most})), SETTINGS, NOW
    )


def test_more_than_the_runtime_allows_is_refused():
    plan = limited(60, activeDeadlineSeconds=61)
    assert said(plan)["Accepted"] == ("False", "LimitExceeded")
    words = "activeDeadlineSeconds is 61, and FineTuneRuntime gpu allows at most 60 (spec.limits."
    assert message(plan, ConditionType.ACCEPTED).startswith(words)
    assert said(limited(60, activeDeadlineSeconds=60))["Accepted"][0] == "True"


@pytest.mark.parametrize("given", [None, 1000])
def test_the_runtimes_limit_holds_for_a_job_that_gives_none_or_raised_it_after_its_start(given):
    plan = limited(20, activeDeadlineSeconds=None)
    job = asking(make_job().model_copy(update={"status": plan.status}), active_deadline_seconds=given)
    child = make_child(job, Stage.PREPARE)
    (held,) = look(job, seen(Stage.PREPARE, child, make_pod(child, started=at(0)))).suspend
    words = "ran for 20 s, all that FineTuneRuntime gpu (spec.limits.maxActiveDeadlineSeconds) allows"
    assert held.mark == f"DeadlineExceeded: {words}"


# --- after the end ---------------------------------------------------------------------------------------------------


def finished(**spec):
    """A job that completed at LATER."""
    job = started(Stage.TRAIN, **spec)
    return after(job, look(job, seen(Stage.TRAIN, make_child(job, Stage.TRAIN, complete=True))))


def test_a_final_job_is_deleted_when_its_time_is_over():
    job = finished(ttlSecondsAfterFinished=60)
    early = decide(job, seen(Stage.TRAIN), SETTINGS, LATER + timedelta(seconds=59))
    assert (early.delete, early.look_again_after) == (False, 1.0)
    late = decide(job, seen(Stage.TRAIN), SETTINGS, LATER + timedelta(seconds=60))
    assert (late.delete, late.look_again_after, late.create) == (True, None, ())


def test_the_look_that_ends_a_job_plans_the_one_that_deletes_it():
    job = started(Stage.TRAIN, ttlSecondsAfterFinished=60)
    assert look(job, seen(Stage.TRAIN, make_child(job, Stage.TRAIN, complete=True))).look_again_after == 60
    assert look(cancelling(make_job(ttlSecondsAfterFinished=5)), before_start()).look_again_after == 5


def test_without_a_time_it_is_kept():
    plan = decide(finished(), seen(Stage.TRAIN), SETTINGS, LATER + timedelta(days=9999))
    assert (plan.delete, plan.look_again_after) == (False, None)


def test_a_job_that_is_not_final_is_never_deleted():
    job = started(Stage.TRAIN, ttlSecondsAfterFinished=0)
    child = make_child(job, Stage.TRAIN)
    assert not look(job, seen(Stage.TRAIN, child, make_pod(child))).delete


def test_zero_seconds_deletes_at_once():
    job = finished(ttlSecondsAfterFinished=0)
    assert job.status.completion_time == LATER_TEXT
    assert look(job, seen(Stage.TRAIN)).delete


# --- whose ----------------------------------------------------------------------------------------------------------


def test_only_jobs_of_ours_are_looked_after():
    assert ours({"spec": {"managedBy": "finetune.dev/operator"}})
    assert ours({"spec": {}})
    assert ours({})
    assert not ours({"spec": {"managedBy": "example.com/other"}})
