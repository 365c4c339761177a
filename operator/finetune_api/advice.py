"""What a job's own numbers give reason to say before it trains: allowed, but hardly what was meant."""

from __future__ import annotations

from finetune_api.method import MethodType, TrainingMethod
from finetune_api.report import WarningCode

LEAST_BETA_PER_TOKEN = 1.0
"""A difference per token is tens to hundreds of times smaller than one of whole answers, so beta must be larger."""


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
