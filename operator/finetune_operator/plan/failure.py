"""From the end of a pod to words: the attempt's reason, and the reason and sentence of the Failed condition."""

from __future__ import annotations

from finetune_api.attempt import MAX_MESSAGE
from finetune_api.failures import Failure, FailureCode
from finetune_api.job import FineTuneJob
from finetune_api.report import EarlyStop, Report
from finetune_api.runtime import RuntimeSpec
from finetune_api.status import Attempt, AttemptReason, JobStatus, Reason
from finetune_api.trainer import NOT_RETRIED, ExitCode
from finetune_operator.plan.objects import FREE_EXITS
from finetune_operator.plan.queueing import PREEMPTED
from finetune_operator.plan.seen import NEVER_STARTED
from finetune_operator.plan.size import size_of
from finetune_operator.plan.state import Pod, Waiting

FINAL_AT_ONCE: dict[int, Reason] = {
    ExitCode.BAD_CONFIG: Reason.USER_ERROR,
    ExitCode.DATA_INVALID: Reason.DATA_INVALID,
    ExitCode.MODEL_UNAVAILABLE: Reason.MODEL_UNAVAILABLE,
    ExitCode.OUT_OF_MEMORY: Reason.OUT_OF_MEMORY,
    ExitCode.DIVERGED: Reason.DIVERGED,
    ExitCode.CHECKPOINT_INVALID: Reason.CHECKPOINT_INVALID,
}
AFTER_RETRIES: dict[int, Reason] = {
    ExitCode.DATA_UNREACHABLE: Reason.DATA_UNREACHABLE,
    ExitCode.MODEL_UNREACHABLE: Reason.MODEL_UNAVAILABLE,
    ExitCode.PUBLISH_FAILED: Reason.PUBLISH_FAILED,
}
REASONS = {**FINAL_AT_ONCE, **AFTER_RETRIES}
REASONS_OF_CODES: dict[str, Reason] = {
    FailureCode.STORAGE_FULL.value: Reason.STORAGE_FULL,
    FailureCode.CONFIG_UNREADABLE.value: Reason.INTERNAL,
}
"""Causes that the exit code alone does not tell."""
DISRUPTIONS: dict[str, tuple[AttemptReason, str]] = {
    "PreemptionByScheduler": (
        AttemptReason.PREEMPTED,
        "was preempted: the scheduler gave its place to a pod of higher priority",
    ),
    PREEMPTED: (AttemptReason.PREEMPTED, "was preempted: Kueue took its quota back, and it is in its queue again"),
    "DeletionByTaintManager": (
        AttemptReason.NODE_LOST,
        "was removed from its node, which did not answer or bears a NoExecute taint that the pod does not tolerate",
    ),
    "DeletionByPodGC": (AttemptReason.NODE_LOST, "was lost with its node, which is gone"),
    "EvictionByEvictionAPI": (AttemptReason.EVICTED, "was evicted by request, as kubectl drain does it"),
    "TerminationByKubelet": (
        AttemptReason.EVICTED,
        "was ended by its node, which was short of memory or disk, or shut down",
    ),
}
"""Reasons of the DisruptionTarget condition, which Kubernetes sets on a pod that is not to blame for its end."""
STOPPERS = {
    AttemptReason.PREEMPTED.value: (
        ", at last preempted for a higher priority or a queue's quota",
        "give it a higher priority, or a queue whose quota is its own",
    ),
    AttemptReason.NODE_LOST.value: (", at last by the loss of its node", "have the nodes looked after"),
    AttemptReason.EVICTED.value: (", at last evicted from its node", "have the nodes looked after"),
    AttemptReason.PEER_LOST.value: (
        ", at last because a peer was lost",
        "have the nodes and their network looked after",
    ),
}
"""Who stopped an attempt, and what helps against it."""
EVICTED = "Evicted"
VANISHED = "is gone, and nobody saw how it ended"
MOVES = {AttemptReason.EVICTED: Reason.EVICTED, AttemptReason.PREEMPTED: Reason.EVICTED} | {
    AttemptReason.NODE_LOST: Reason.NODE_LOST
}
GOOD_ENDS = frozenset({AttemptReason.SUCCEEDED.value, AttemptReason.EARLY_STOPPED.value})


def words_of(pod: Pod, report: Report | None, total_steps: int | None) -> tuple[str | None, str | None]:
    """Why a pod ended, in a word and in a sentence: for the attempt's record.

    Of a pod that still runs it is what it announces itself, for the case that nobody will see the end; None while it
    is at work.
    """
    if pod.ended is not None and pod.exit_code != 0:
        return word_of(pod, report), end_of(pod, report)[:MAX_MESSAGE]
    if pod.ended is None and (report is None or not report.finished):
        return None, None
    if pod.ended is None and report is not None and report.failure is not None:
        return report.failure.code.value, report.failure.sentence[:MAX_MESSAGE]
    if report is not None and report.early_stop is not None:
        return AttemptReason.EARLY_STOPPED.value, _early(report.early_stop, total_steps)
    return AttemptReason.SUCCEEDED.value, None


def _early(stop: EarlyStop, total_steps: int | None) -> str:
    end = f"step {stop.step} of {total_steps}" if total_steps else f"step {stop.step}"
    waited = f"{stop.evaluations} evaluation{'s' if stop.evaluations > 1 else ''}"
    best = "none was finite" if stop.best_value is None else f"best {stop.best_value:g} at step {stop.best_step}"
    return f"stopped early after {end}: {stop.metric} did not improve in {waited}, {best}"


def word_of(pod: Pod, report: Report | None) -> str:
    """Why a pod ended without success, in one word."""
    if pod.cause == AttemptReason.OOM_KILLED:
        return AttemptReason.OOM_KILLED.value
    if pod.disrupted is not None:
        return DISRUPTIONS[pod.disrupted][0].value if pod.disrupted in DISRUPTIONS else pod.disrupted[:64]
    if pod.cause is not None:
        return pod.cause[:64]
    if pod.exit_code in FREE_EXITS:
        return (AttemptReason.PEER_LOST if pod.exit_code == ExitCode.PEER_LOST else AttemptReason.STOPPED).value
    if (failure := failure_of(pod, report)) is not None:
        return failure.code.value
    vanished = pod.exit_code is None
    return (AttemptReason.POD_VANISHED if vanished else AttemptReason.NO_FINAL_REPORT).value


def announced_exit(attempt: Attempt) -> int | None:
    """The exit code of the failure that an attempt is recorded with; None = another end, or a stop."""
    if attempt.reason is None or attempt.reason not in set(FailureCode):
        return None
    code = Failure(code=FailureCode(attempt.reason)).exit_code
    return None if code in FREE_EXITS else int(code)


def failure_of(pod: Pod, report: Report | None) -> Failure | None:
    """The cause that the trainer named, if it goes with the exit code: a pod that lies about it is not believed."""
    failure = report.failure if report is not None else None
    return failure if failure is not None and failure.exit_code == pod.exit_code else None


def cause_of(attempt: Attempt | None, fallback: str) -> tuple[Reason, str]:
    """(reason, sentence) of a job whose last failed attempt this is.

    Args:
        fallback: the sentence for when there is none.
    """
    if attempt is None:
        return Reason.BACKOFF_LIMIT_EXCEEDED, fallback
    reason, sentence = _reason_of(attempt), attempt.message or fallback
    if reason is Reason.BACKOFF_LIMIT_EXCEEDED:
        return reason, f"no retry is left (backoffLimit): {sentence}"
    return reason, sentence


def _reason_of(attempt: Attempt) -> Reason:
    """The cause, where there is one that a person can act on; else only that nothing is tried any more."""
    if attempt.reason in REASONS_OF_CODES:
        return REASONS_OF_CODES[attempt.reason]
    exit_code = attempt.exit_code if attempt.exit_code is not None else announced_exit(attempt)
    if exit_code in REASONS:
        return REASONS[exit_code]
    if exit_code in NOT_RETRIED:
        return Reason.INTERNAL
    oom = attempt.reason == AttemptReason.OOM_KILLED
    return Reason.OUT_OF_MEMORY if oom else Reason.BACKOFF_LIMIT_EXCEEDED


def end_of(pod: Pod, report: Report | None) -> str:
    """How the pod ended, in a sentence that says what to do: the trainer's own where it left one."""
    failure = failure_of(pod, report)
    if pod.disrupted is not None:
        how = DISRUPTIONS[pod.disrupted][1] if pod.disrupted in DISRUPTIONS else f"was disrupted ({pod.disrupted})"
        return f"pod {pod.name} {how}{_quoted(pod)}{f'; {failure.sentence}' if failure else ''}"
    if failure is not None:
        return failure.sentence
    if pod.exit_code in FREE_EXITS and report is not None and report.finished:
        return f"pod {pod.name} was stopped before its end was recorded; the next one tells of it"
    if pod.cause is not None:
        return _by_node(pod, pod.cause)
    if pod.exit_code is None:
        return f"pod {pod.name} {VANISHED}"
    unknown = pod.exit_code in NOT_RETRIED and pod.exit_code not in REASONS
    what = ", which this operator does not know: the image is not of its version" if unknown else ""
    log = f"{what}; kubectl logs {pod.name} may tell more"
    return f"pod {pod.name} ended with exit code {pod.exit_code} and left no report{log}"


def _by_node(pod: Pod, cause: str) -> str:
    """The sentence of an end that the node brought about."""
    if cause == AttemptReason.OOM_KILLED:
        return (
            f"pod {pod.name} needed more than its memory and was killed ({cause}, exit code {pod.exit_code}):"
            " raise resources.memory or lower maxSeqLength"
        )
    if cause == EVICTED:
        remedy = "have the limit of its temporary storage raised (a LimitRange, the FineTuneRuntime's podTemplate)"
        return f"pod {pod.name} was evicted{_quoted(pod)}: {remedy}, if it is that"
    if cause in NEVER_STARTED:
        return f"pod {pod.name} could not be started ({cause}{_quoted(pod)}): check spec.image of the FineTuneRuntime"
    code = "" if pod.exit_code is None else f", exit code {pod.exit_code}"
    return f"pod {pod.name} was ended by its node ({cause}{code}{_quoted(pod)})"


def _quoted(pod: Pod) -> str:
    return f": {pod.node_said.rstrip(' .')}" if pod.node_said else ""


def follow_up(pod: Pod, report: Report | None) -> Waiting:
    """What to say between the end of a pod and the beginning of the next."""
    word = word_of(pod, report)
    reason = MOVES.get(AttemptReason(word), Reason.INITIALIZING) if word in set(AttemptReason) else Reason.INITIALIZING
    return Waiting(reason, f"{end_of(pod, report)}; a new pod follows")


def too_often(disruptions: int, attempts: tuple[Attempt, ...]) -> str:
    """The sentence for a job that was stopped from outside until even that is too much: by whom, the last time."""
    last = next((attempt.reason for attempt in reversed(attempts) if attempt.end_time), None)
    at_last, remedy = STOPPERS.get(last or "", ("", "its pods' events and the nodes' tell by whom"))
    return f"stopped {disruptions} times from outside{at_last}: {remedy}, then create a new FineTuneJob"


def killed_for_memory(job: FineTuneJob, runtime: RuntimeSpec, status: JobStatus) -> str:
    """The sentence for a pod that the kernel killed twice at the same place."""
    step = status.recovery.step if status.recovery else 0
    memory = size_of(job, runtime).memory
    return (
        f"the pod needed more than its {memory} of memory twice after step {step}:"
        " raise resources.memory or lower maxSeqLength"
    )
