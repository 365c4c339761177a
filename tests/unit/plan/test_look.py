"""What a look makes of several pods and of what each has said: the newest word stands, however often it is looked."""

from __future__ import annotations

from dataclasses import replace

from builders import NOW_TEXT, failed_report, heard, make_child, make_pod, make_progress, make_recovery, report_for
from finetune_api.failures import FailureCode
from finetune_api.report import Report
from finetune_api.resources import Resources
from finetune_api.status import ConditionType, JobStatus
from finetune_api.trainer import Stage
from finetune_operator.plan.state import Fault, Observed, Pod, Silence
from lives import LATER_TEXT, after, asking, look, said, seen, started

JOB = started(Stage.TRAIN)
CHILD = make_child(JOB, Stage.TRAIN)


def at(step: int) -> dict[str, object]:
    return {"progress": make_progress(step), "recovery": make_recovery(step), "resumed_from_step": 0}


def steps(status: JobStatus | None) -> tuple[int, int]:
    assert status is not None
    assert status.progress is not None
    assert status.recovery is not None
    return status.progress.step, status.recovery.step


def failed_at(step: int, **fields: object) -> Pod:
    pod = make_pod(CHILD, "first", ended=NOW_TEXT, exit_code=1, **fields)
    word: Report = failed_report(pod, Stage.TRAIN, FailureCode.STOPPED).model_copy(update=at(step))
    return replace(pod, last_word=word.model_dump_json())


def test_the_last_word_of_an_earlier_pod_never_takes_progress_back():
    """A restarted operator has heard no running pod yet, but reads the last words of those that have ended."""
    dead = failed_at(5)
    job = after(JOB, look(JOB, seen(Stage.TRAIN, CHILD, dead)))
    assert steps(job.status) == (5, 5)
    pod = make_pod(CHILD, "second", created=LATER_TEXT, started=LATER_TEXT)
    reports = heard(report_for(pod, Stage.TRAIN, **at(8)))
    first = look(job, seen(Stage.TRAIN, CHILD, dead, pod, reports=reports))
    restarted = look(after(job, first), seen(Stage.TRAIN, CHILD, dead, pod))
    for plan in (first, restarted):
        assert steps(plan.status) == (8, 8)
    assert restarted.status == first.status


def test_pods_that_are_seen_for_the_first_time_tell_in_their_order():
    dead = failed_at(5)
    pod = make_pod(CHILD, "second", created=LATER_TEXT, started=LATER_TEXT)
    plan = look(JOB, seen(Stage.TRAIN, CHILD, dead, pod))
    assert steps(plan.status) == (5, 5)


def test_of_several_pods_the_first_is_listened_to_whoever_speaks_for_the_round():
    job = asking(JOB, resources=Resources(nodes=2))
    child = make_child(job, Stage.TRAIN)
    leader, peer = make_pod(child, "0-aaaaa", index=0), make_pod(child, "1-bbbbb", index=1)
    silences = {leader.uid: Silence(NOW_TEXT, Fault.UNREACHABLE, too_long=True)}
    ended = replace(peer, running=False, ended=NOW_TEXT, exit_code=4)
    for other in (peer, ended, replace(peer, running=False, ended=NOW_TEXT, exit_code=1)):
        observed = Observed(children={Stage.TRAIN: child}, pods={Stage.TRAIN: (leader, other)}, silences=silences)
        assert said(look(job, observed))[ConditionType.PROGRESS_STALE] == ("True", "EndpointUnreachable")
