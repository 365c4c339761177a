"""ProgressStale: a pod that runs but gives no report. It says what is known, and never that training has stopped."""

from __future__ import annotations

from finetune_api.status import ConditionType, Reason
from finetune_operator.plan.conditions import Say
from finetune_operator.plan.look import Look
from finetune_operator.plan.state import Fault, Pod, Silence

SAID = {
    Fault.REFUSED: "answers with an error, or redirects",
    Fault.TOO_LONG: "answers with more than a report may have",
    Fault.MALFORMED: "answers with something that is no report",
    Fault.FOREIGN: "answers for another job or pod",
}


def staleness(look: Look) -> list[Say]:
    """What to say of ProgressStale; nothing while it is as it was.

    A restarted operator has asked nobody yet: until it knows better, what was said stays.
    """
    pod = look.leader
    silence = look.silences.get(pod.uid) if pod is not None and pod.running else None
    if pod is not None and silence is not None and silence.too_long:
        return [_stale(pod, silence)]
    if not look.status.is_true(ConditionType.PROGRESS_STALE):
        return []
    if pod is None or not pod.running:
        return [Say(ConditionType.PROGRESS_STALE, False, "no pod runs that could report")]
    if pod.uid not in look.reports:
        return []
    return [Say(ConditionType.PROGRESS_STALE, False, f"pod {pod.name} reports")]


def _stale(pod: Pod, silence: Silence) -> Say:
    if silence.fault is Fault.UNREACHABLE:
        message = (
            f"pod {pod.name} runs, but its port 8080 has not answered the operator since {silence.since}: check that"
            " every NetworkPolicy and service mesh on the way lets the operator's namespace in, and that the pod does"
            " not hang; training itself does not need this"
        )
        return Say(ConditionType.PROGRESS_STALE, True, message, Reason.ENDPOINT_UNREACHABLE)
    message = (
        f"pod {pod.name} runs, but has given no report since {silence.since}: it {SAID[silence.fault]};"
        f" kubectl logs {pod.name} tells what it does"
    )
    return Say(ConditionType.PROGRESS_STALE, True, message, Reason.NO_REPORT)
