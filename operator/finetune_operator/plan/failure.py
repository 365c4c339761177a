"""From the end of a pod to the reason and the sentence of the Failed condition."""

from __future__ import annotations

from finetune_api.job import FineTuneJob
from finetune_api.report import Report
from finetune_api.runtime import RuntimeSpec
from finetune_api.status import JobStatus, Reason
from finetune_api.trainer import ExitCode
from finetune_operator.plan.size import size_of
from finetune_operator.plan.state import Pod

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


def cause_of(pod: Pod | None, report: Report | None, fallback: str) -> tuple[Reason, str]:
    """(reason, sentence) of a job whose last failed pod is `pod`.

    Args:
        report: what that pod reported.
        fallback: the Job controller's sentence, for when no pod is left to ask.
    """
    if pod is None or pod.exit_code is None:
        return Reason.BACKOFF_LIMIT_EXCEEDED, fallback
    reason = REASONS.get(pod.exit_code, Reason.USER_ERROR if 10 <= pod.exit_code < 20 else None)
    sentence = end_of(pod, report)
    if reason is None:
        return Reason.BACKOFF_LIMIT_EXCEEDED, f"the last retry failed too: {sentence}"
    return reason, sentence


def end_of(pod: Pod, report: Report | None) -> str:
    """How the pod ended, in a sentence: the trainer's own where it left one."""
    if report is not None and report.failure is not None:
        return report.failure.sentence
    why = f" ({pod.cause or pod.disrupted})" if pod.cause or pod.disrupted else ""
    code = "without an exit code" if pod.exit_code is None else f"with exit code {pod.exit_code}"
    return f"pod {pod.name} ended {code}{why} and left no report"


def killed_for_memory(job: FineTuneJob, runtime: RuntimeSpec, status: JobStatus) -> str:
    """The sentence for a pod that the kernel killed twice at the same place."""
    step = status.recovery.step if status.recovery else 0
    memory = size_of(job, runtime).memory
    return (
        f"the pod needed more than its {memory} of memory twice after step {step}:"
        " raise resources.memory or lower maxSeqLength"
    )
