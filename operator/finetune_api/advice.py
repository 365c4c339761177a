"""What a person is told to do: about a job's own numbers, before it trains, and about the warnings of a run."""

from __future__ import annotations

from finetune_api.method import MethodType, TrainingMethod
from finetune_api.report import WarningCode

LEAST_BETA_PER_TOKEN = 1.0
"""A difference per token is tens to hundreds of times smaller than one of whole answers, so beta must be larger."""

TO_DO: dict[WarningCode, str] = {
    WarningCode.RECOVERY_SKIPPED: "look after the storage if it was damaged",
    WarningCode.LAST_TURN_ONLY: "set data.chatTemplate to a template that renders earlier answers as they were",
    WarningCode.STEP_SKIPPED: "look at the lines in the pod's log: one that is in every skipped step is at fault",
    WarningCode.RESUME_REPLANNED: "nothing: it is slower, not different",
    WarningCode.MICRO_BATCH_HALVED: "nothing: it is slower, not different; with more memory it would not be",
    WarningCode.SHARED_PREFIX_OFF: "nothing: it is slower, not different",
}
"""What to do about a warning whose own sentence does not say it."""


def beta_warning(method: TrainingMethod) -> tuple[WarningCode, str] | None:
    """The warning that beta deserves and its sentence: a loss per token with a beta meant for whole answers."""
    objective = method.preference
    if method.type is not MethodType.DPO or not objective.per_token or objective.beta >= LEAST_BETA_PER_TOKEN:
        return None
    beta, gamma = f"{objective.beta:g}", f"{objective.gamma:g}"
    if objective.gamma > 0:
        return WarningCode.GAMMA_DOMINATES, (
            f"dpo.simpoGamma is {gamma} and dpo.beta {beta}: beta times a difference per token stays far below gamma,"
            " so all pairs weigh nearly the same whatever the model prefers; set beta to 2 to 10 and simpoGamma to"
            " about half of it"
        )
    held = "" if objective.reference_free else " and hardly holds the model to its reference"
    return WarningCode.BETA_LOW, (
        f"dpo.beta is {beta} while log-ratios are divided by length: the loss then hardly moves{held}; set beta to 2"
        " to 10, or turn normalizeLogratiosByLength off"
    )
