"""The pods that prepared and trained: which counted as failures, which were free, and when the operator gives up.

Counters live in the status, because pods vanish. Each pod is counted once: when its end is first seen.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

from finetune_api.job import FineTuneJob
from finetune_api.report import Report
from finetune_api.status import MAX_ATTEMPTS, Attempt, AttemptReason, JobStatus
from finetune_api.trainer import NOT_RETRIED, Stage
from finetune_operator.plan.failure import GOOD_ENDS, VANISHED, announced_exit, words_of
from finetune_operator.plan.objects import FREE_EXITS, child_name
from finetune_operator.plan.state import Pod

MAX_FREE = 100
"""Free attempts after which even those are too many."""
ON_REQUEST = frozenset({AttemptReason.STOPPED.value, AttemptReason.PEER_LOST.value})
"""Ends that somebody asked for whom we do not know."""
KEPT_OF_NAME = 58
"""Characters that the API server keeps of a generateName, before its own five."""


@dataclass(frozen=True, slots=True)
class Tally:
    """The newest attempts, oldest first, and the counters over all."""

    attempts: tuple[Attempt, ...]
    restarts: int
    disruptions: int
    ended: tuple[Attempt, ...] = ()
    """Those whose end is new in this look and was no success."""


def count(
    job: FineTuneJob,
    status: JobStatus,
    stage: Stage,
    pods: tuple[Pod, ...],
    reports: dict[str, Report],
    now: str,
    *,
    stopped: bool = False,
) -> Tally:
    """Bring the attempts of `stage` up to date with its pods (oldest first).

    Args:
        stopped: the operator stops the job, so that ends count neither as failures nor as disruptions.
    """
    tally = Tally(status.attempts, status.restarts, status.disruptions)
    for pod in pods:
        known = next((a for a in tally.attempts if a.pod in {pod.name, *pod.peers}), None)
        if not _already_counted(pod, known, tally.attempts):
            tally = _seen(job, stage, tally, pod, known, reports.get(pod.uid), status)
    tally = _vanished(job, stage, tally, {name for pod in pods for name in (pod.name, *pod.peers)}, now)
    return _by_our_doing(tally, status) if stopped else tally


def out_of_memory_twice(tally: Tally, job: FineTuneJob, stage: Stage) -> bool:
    """Whether two pods of the stage in a row were killed for memory without getting further.

    Not only the newest two: a third may have begun before it was stopped for that, and the verdict must stand.
    """
    ended = [a for a in tally.attempts if a.end_time and of_stage(a, job, stage)]
    return any(
        first.reason == second.reason == AttemptReason.OOM_KILLED
        and first.resumed_from_step == second.resumed_from_step
        for first, second in pairwise(ended)
    )


def last_failure(attempts: tuple[Attempt, ...], job: FineTuneJob, stage: Stage) -> Attempt | None:
    """The newest attempt of the stage that ended without success."""
    ended = (a for a in reversed(attempts) if a.end_time is not None and of_stage(a, job, stage))
    return next((attempt for attempt in ended if attempt.reason not in GOOD_ENDS), None)


def of_stage(attempt: Attempt, job: FineTuneJob, stage: Stage) -> bool:
    """Whether the attempt's pod is one of that stage's Job; of a long name the API server keeps the beginning."""
    return attempt.pod.startswith(f"{child_name(job, stage)}-"[:KEPT_OF_NAME])


def _already_counted(pod: Pod, known: Attempt | None, attempts: tuple[Attempt, ...]) -> bool:
    if known is not None:
        return known.end_time is not None
    deleted = pod.gone and pod.exit_code is None and pod.disrupted is None and pod.cause is None
    if pod.started is None and (pod.ended is None or deleted):
        return True  # a pod that has not run is no attempt
    full = len(attempts) == MAX_ATTEMPTS
    return full and (pod.started or pod.ended or "") <= (attempts[0].start_time or attempts[0].end_time or "")


def _seen(
    job: FineTuneJob,
    stage: Stage,
    tally: Tally,
    pod: Pod,
    known: Attempt | None,
    report: Report | None,
    status: JobStatus,
) -> Tally:
    resumed = report.resumed_from_step if report and report.resumed_from_step is not None else None
    reason, message = words_of(pod, report, status.progress.total_steps if status.progress else None)
    attempt = Attempt(
        pod=pod.name,
        start_time=pod.started or (known.start_time if known else None),
        end_time=pod.ended,
        exit_code=pod.exit_code if pod.ended else None,
        reason=reason,
        message=message,
        resumed_from_step=resumed if resumed is not None else (known.resumed_from_step if known else None),
    )
    others = tuple(a for a in tally.attempts if a.pod not in {pod.name, *pod.peers})
    grown = replace(tally, attempts=(*others, attempt)[-MAX_ATTEMPTS:])
    if pod.ended is None or pod.exit_code == 0:
        return grown
    grown = replace(grown, ended=(*grown.ended, attempt))
    if pod.exit_code in NOT_RETRIED:
        return grown
    if _is_free(pod) and not _stuck(job, stage, pod, attempt, others, report, status):
        return replace(grown, disruptions=grown.disruptions + 1)
    return replace(grown, restarts=grown.restarts + 1)


def _vanished(job: FineTuneJob, stage: Stage, tally: Tally, there: set[str], now: str) -> Tally:
    """Attempts whose pod is not there any more and whose end nobody saw: what it had announced stands for it."""
    lost = [a for a in tally.attempts if a.end_time is None and of_stage(a, job, stage) and a.pod not in there]
    ends = {a.pod: _unseen(a, now) for a in lost}
    failed = [a for a in ends.values() if a.reason not in GOOD_ENDS]
    exits = [announced_exit(a) for a in failed]
    return replace(
        tally,
        attempts=tuple(ends.get(a.pod, a) for a in tally.attempts),
        restarts=tally.restarts + sum(code is not None and code not in NOT_RETRIED for code in exits),
        disruptions=tally.disruptions + exits.count(None),
        ended=(*tally.ended, *failed),
    )


def _unseen(attempt: Attempt, now: str) -> Attempt:
    """The attempt with the end that nobody saw."""
    vanished = {"reason": AttemptReason.POD_VANISHED.value, "message": f"pod {attempt.pod} {VANISHED}"}
    return attempt.model_copy(update={"end_time": now, **({} if attempt.reason else vanished)})


def _by_our_doing(tally: Tally, status: JobStatus) -> Tally:
    """What has ended since we stop the job: nothing of it counts, and no later end is held against it."""
    halted = {"reason": AttemptReason.HALTED.value}
    ours = {a.pod: a.model_copy(update=halted) for a in tally.ended if a.reason in ON_REQUEST}
    return Tally(
        attempts=tuple(ours.get(a.pod, a) for a in tally.attempts),
        restarts=status.restarts,
        disruptions=status.disruptions,
        ended=tuple(ours.get(a.pod, a) for a in tally.ended),
    )


def _is_free(pod: Pod) -> bool:
    return pod.disrupted is not None or pod.exit_code in FREE_EXITS or (pod.gone and pod.exit_code is None)


def _stuck(
    job: FineTuneJob,
    stage: Stage,
    pod: Pod,
    attempt: Attempt,
    others: tuple[Attempt, ...],
    report: Report | None,
    status: JobStatus,
) -> bool:
    """Two free ends in a row without a new step: a stop that repeats without progress counts as a failure."""
    if pod.disrupted is not None or pod.exit_code not in FREE_EXITS:
        return False
    before = next((a for a in reversed(others) if of_stage(a, job, stage)), None)
    if before is None or before.reason not in ON_REQUEST:
        return False
    recovery = (report.recovery if report else None) or status.recovery
    begun = attempt.resumed_from_step or 0
    return (before.resumed_from_step or 0) == begun and (recovery.step if recovery else 0) <= begun
