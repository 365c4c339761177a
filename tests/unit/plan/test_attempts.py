"""Which ends of pods count: failures do, disruptions and stops do not, and none is counted twice."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from builders import NOW_TEXT, make_child, make_job, make_pod, make_recovery, report_for
from finetune_api.failures import Failure, FailureCode
from finetune_api.report import Report
from finetune_api.status import Attempt, JobStatus
from finetune_api.trainer import Stage
from finetune_operator.plan.attempts import Tally, count, of_stage, out_of_memory_twice
from finetune_operator.plan.state import Pod

JOB = make_job()
CHILD = make_child(JOB, Stage.TRAIN)


def pod(number: int, **fields: Any) -> Pod:
    """The number-th pod of the train Job."""
    at = f"2026-01-02T03:{number:02d}:00Z"
    ends = {"ended": f"2026-01-02T03:{number:02d}:30Z"} if "exit_code" in fields else {}
    return make_pod(CHILD, f"{number:05d}", created=at, started=at, **{**ends, **fields})


def tally(*pods: Pod, status: JobStatus | None = None, reports: dict[str, Report] | None = None) -> Tally:
    return count(JOB, status or JobStatus(), Stage.TRAIN, pods, reports or {}, NOW_TEXT)


def stored(counted: Tally, **fields: Any) -> JobStatus:
    """The status with these attempts, as the next look reads it."""
    return JobStatus(attempts=counted.attempts, restarts=counted.restarts, disruptions=counted.disruptions, **fields)


@pytest.mark.parametrize(
    ("end", "reason", "restarts", "disruptions"),
    [
        ({"exit_code": 0}, "Succeeded", 0, 0),
        ({"exit_code": 1}, "NoFinalReport", 1, 0),
        ({"exit_code": 3}, "Stopped", 0, 1),
        ({"exit_code": 4}, "PeerLost", 0, 1),
        ({"exit_code": 11}, "NoFinalReport", 0, 0),
        ({"exit_code": 20}, "NoFinalReport", 1, 0),
        ({"exit_code": 137, "cause": "OOMKilled"}, "OOMKilled", 1, 0),
        ({"exit_code": 137, "disrupted": "PreemptionByScheduler"}, "Preempted", 0, 1),
        ({"exit_code": 3, "disrupted": "EvictionByEvictionAPI"}, "Evicted", 0, 1),
        ({"ended": NOW_TEXT, "disrupted": "TerminationByKubelet", "cause": "Evicted"}, "Evicted", 0, 1),
        ({"ended": NOW_TEXT, "cause": "Evicted"}, "Evicted", 1, 0),
        ({"exit_code": 3, "disrupted": "DeletionByTaintManager"}, "NodeLost", 0, 1),
        ({"ended": NOW_TEXT, "disrupted": "DeletionByPodGC"}, "NodeLost", 0, 1),
        ({"exit_code": 1, "disrupted": "AFuture" + "Reason" * 20}, ("AFuture" + "Reason" * 20)[:64], 0, 1),
        ({"ended": NOW_TEXT, "cause": "UnexpectedAdmissionError"}, "UnexpectedAdmissionError", 1, 0),
        ({"ended": NOW_TEXT, "gone": True}, "PodVanished", 0, 1),
    ],
)
def test_an_end_counts_as_what_it_was(end, reason, restarts, disruptions):
    counted = tally(pod(1, **end))
    assert [a.reason for a in counted.attempts] == [reason]
    assert (counted.restarts, counted.disruptions) == (restarts, disruptions)


@pytest.mark.parametrize(
    ("failure", "reason", "restarts", "disruptions"),
    [
        (None, "Succeeded", 0, 0),
        (FailureCode.DIVERGED, "Diverged", 0, 0),
        (FailureCode.DATA_UNREACHABLE, "DataUnreachable", 1, 0),
        (FailureCode.STOPPED, "Stopped", 0, 1),
    ],
)
def test_an_end_that_nobody_saw_counts_as_what_was_announced(failure, reason, restarts, disruptions):
    running = pod(1)
    cause = Failure(code=failure) if failure is not None else None
    report = report_for(running, Stage.TRAIN, finished=True, failure=cause)
    before = tally(running, reports={running.uid: report})
    assert [(a.reason, a.end_time) for a in before.attempts] == [(reason, None)]
    assert (before.restarts, before.disruptions, before.ended) == (0, 0, ())
    counted = tally(status=stored(before))
    assert [(a.reason, a.end_time) for a in counted.attempts] == [(reason, NOW_TEXT)]
    assert (counted.restarts, counted.disruptions) == (restarts, disruptions)
    assert [a.reason for a in counted.ended] == ([] if failure is None else [reason])
    seen_after_all = tally(replace(running, running=False, ended=NOW_TEXT, exit_code=137), status=stored(before))
    assert [(a.reason, a.exit_code) for a in seen_after_all.attempts] == [("NoFinalReport", 137)]


def test_a_pod_is_counted_once_however_often_it_is_seen():
    dead = pod(1, exit_code=1)
    first = tally(dead)
    again = tally(dead, pod(2), status=stored(first))
    assert (first.restarts, again.restarts) == (1, 1)
    assert [a.pod for a in again.attempts] == ["tune-train-00001", "tune-train-00002"]
    assert (len(first.ended), len(again.ended)) == (1, 0)


def test_the_newest_five_stay_and_older_ones_are_not_counted_anew():
    pods = [pod(n, exit_code=1) for n in range(1, 9)]
    counted = tally(*pods)
    assert [a.pod[-1] for a in counted.attempts] == ["4", "5", "6", "7", "8"]
    assert counted.restarts == 8
    assert tally(*pods, status=stored(counted)).restarts == 8


def test_a_pod_that_has_not_run_is_no_attempt():
    waits = replace(pod(1), started=None, running=False)
    assert tally(waits).attempts == ()
    deleted = replace(waits, ended=NOW_TEXT, gone=True)
    assert tally(deleted).attempts == ()
    assert tally(deleted).disruptions == 0
    assert tally(replace(deleted, disrupted="PreemptionByScheduler")).disruptions == 1


def test_a_pod_that_nobody_saw_end_is_a_disruption():
    running = tally(pod(1))
    counted = tally(status=stored(running))
    (attempt,) = counted.attempts
    assert (attempt.reason, attempt.end_time, attempt.exit_code) == ("PodVanished", NOW_TEXT, None)
    assert counted.disruptions == 1
    assert tally(status=stored(counted)).disruptions == 1


def test_pods_of_the_other_stage_do_not_vanish():
    prepared = JobStatus(attempts=tally(pod(1)).attempts)
    renamed = prepared.attempts[0].model_copy(update={"pod": "tune-prepare-00001"})
    counted = tally(status=JobStatus(attempts=(renamed,)))
    assert counted.attempts == (renamed,)


def test_where_a_pod_resumed_is_kept_after_it_went_silent():
    first = pod(1)
    said = {first.uid: report_for(first, Stage.TRAIN, resumed_from_step=40)}
    running = tally(first, reports=said)
    ended = tally(replace(first, running=False, ended=NOW_TEXT, exit_code=3), status=stored(running))
    assert ended.attempts[0].resumed_from_step == 40


def resumed(of: Pod, step: int, saved: int) -> dict[str, Report]:
    return {of.uid: report_for(of, Stage.TRAIN, resumed_from_step=step, recovery=make_recovery(saved))}


def test_two_stops_in_a_row_without_a_new_step_count_as_a_failure():
    first, second = pod(1, exit_code=3), pod(2, exit_code=3)
    one = tally(first, reports=resumed(first, 10, 10))
    assert (one.restarts, one.disruptions) == (0, 1)
    two = tally(first, second, status=stored(one), reports=resumed(second, 10, 10))
    assert (two.restarts, two.disruptions) == (1, 1)


def test_stops_with_progress_stay_free():
    first, second = pod(1, exit_code=3), pod(2, exit_code=3)
    one = tally(first, reports=resumed(first, 0, 10))
    two = tally(first, second, status=stored(one), reports=resumed(second, 10, 15))
    assert (two.restarts, two.disruptions) == (0, 2)


def test_a_stop_of_our_own_is_no_stop_that_repeats():
    first, second = pod(1, exit_code=3), pod(2, exit_code=3)
    suspended = count(JOB, JobStatus(), Stage.TRAIN, (first,), resumed(first, 10, 10), NOW_TEXT, stopped=True)
    assert [a.reason for a in suspended.attempts] == [a.reason for a in suspended.ended] == ["Halted"]
    assert (suspended.restarts, suspended.disruptions) == (0, 0)
    evicted = tally(first, second, status=stored(suspended), reports=resumed(second, 10, 10))
    assert (evicted.restarts, evicted.disruptions) == (0, 1)


def test_a_preemption_before_a_stop_is_no_stop_that_repeats():
    first, second = pod(1, exit_code=3, disrupted="PreemptionByScheduler"), pod(2, exit_code=3)
    one = tally(first, reports=resumed(first, 10, 10))
    two = tally(first, second, status=stored(one), reports=resumed(second, 10, 10))
    assert (two.restarts, two.disruptions) == (0, 2)


def test_preemptions_stay_free_even_without_progress():
    ends = {"exit_code": 137, "disrupted": "PreemptionByScheduler"}
    pods = [pod(n, **ends) for n in range(1, 6)]
    counted = tally(*pods)
    assert (counted.restarts, counted.disruptions) == (0, 5)


def test_out_of_memory_twice_means_at_the_same_step():
    killed = {"exit_code": 137, "cause": "OOMKilled"}
    first, second = pod(1, **killed), pod(2, **killed)
    once = tally(first)
    assert not out_of_memory_twice(once, JOB, Stage.TRAIN)
    assert out_of_memory_twice(tally(first, second), JOB, Stage.TRAIN)
    reports = {**resumed(first, 0, 10), **resumed(second, 10, 10)}
    assert not out_of_memory_twice(tally(first, second, reports=reports), JOB, Stage.TRAIN)


def test_out_of_memory_twice_stays_so_when_a_later_pod_is_stopped_for_it():
    killed = {"exit_code": 137, "cause": "OOMKilled"}
    counted = tally(pod(1, **killed), pod(2, **killed), pod(3, exit_code=3))
    assert out_of_memory_twice(counted, JOB, Stage.TRAIN)


@pytest.mark.parametrize("stage", list(Stage))
def test_a_pod_belongs_to_its_stage_though_its_name_was_cut(stage):
    job = make_job("a" * 52)
    child = make_child(job, stage)
    cut = f"{child.name}-"[:58] + "x7k2p"  # as the API server makes names of at most 63 characters
    other = next(s for s in Stage if s is not stage)
    attempt = Attempt(pod=cut, start_time=NOW_TEXT)
    assert (of_stage(attempt, job, stage), of_stage(attempt, job, other)) == (True, False)
