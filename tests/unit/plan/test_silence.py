"""A pod that gives no report is told of after a while, and so is its next word."""

from __future__ import annotations

from typing import Any

import pytest

from builders import NOW_TEXT, heard, make_child, make_pod, make_progress, report_for
from finetune_api.status import ConditionType
from finetune_api.trainer import Stage
from finetune_operator.plan.state import Fault, Observed, Plan, Pod, Silence
from lives import after, look, message, said, started

STALE = ConditionType.PROGRESS_STALE
JOB = started(Stage.TRAIN)
CHILD = make_child(JOB, Stage.TRAIN)
POD = make_pod(CHILD)
REPORT = heard(report_for(POD, Stage.TRAIN, progress=make_progress(3)))


def observed(pod: Pod = POD, silence: Silence | None = None, **more: Any) -> Observed:
    silences = {pod.uid: silence} if silence else {}
    return Observed(children={Stage.TRAIN: CHILD}, pods={Stage.TRAIN: (pod,)}, silences=silences, **more)


def silent(fault: Fault = Fault.UNREACHABLE, too_long: bool = True) -> Plan:
    return look(JOB, observed(silence=Silence(NOW_TEXT, fault, too_long)))


@pytest.mark.parametrize(
    ("fault", "reason", "words"),
    [
        (Fault.UNREACHABLE, "EndpointUnreachable", ("NetworkPolicy", "mesh", POD.name, NOW_TEXT)),
        (Fault.REFUSED, "NoReport", ("error", "kubectl logs")),
        (Fault.MALFORMED, "NoReport", ("no report",)),
        (Fault.FOREIGN, "NoReport", ("another job",)),
        (Fault.TOO_LONG, "NoReport", ("more than",)),
    ],
)
def test_a_long_silence_is_told_with_what_to_check(fault, reason, words):
    plan = silent(fault)
    assert said(plan)[STALE] == ("True", reason)
    assert all(word in message(plan, STALE) for word in words)
    assert said(plan)["Running"][0] == "True", "training goes on as far as anybody knows"
    assert ("Warning", reason) in [(event.type, event.reason) for event in plan.events]


def test_a_short_silence_is_nothing_to_tell():
    assert STALE not in said(silent(too_long=False))
    assert STALE not in said(look(JOB, observed(reports=REPORT)))


def test_the_next_report_ends_it():
    stale = after(JOB, silent())
    assert said(look(stale, observed(reports=REPORT)))[STALE] == ("False", "ProgressStale")


def test_a_restarted_operator_that_has_not_asked_yet_leaves_it_as_it_is():
    stale = after(JOB, silent())
    assert said(look(stale, observed()))[STALE] == ("True", "EndpointUnreachable")


def test_the_end_of_the_pod_or_the_job_ends_it():
    stale = after(JOB, silent())
    ended = make_pod(CHILD, ended=NOW_TEXT, exit_code=1)
    assert said(look(stale, observed(ended)))[STALE][0] == "False"
    over = Observed(children={Stage.TRAIN: make_child(JOB, Stage.TRAIN, complete=True)}, pods={Stage.TRAIN: (ended,)})
    assert said(look(stale, over))[STALE][0] == "False"
