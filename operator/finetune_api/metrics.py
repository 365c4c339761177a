"""The metric table: each value's name in metrics.jsonl and trackers, its name in status, and what it is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Metric:
    """One value that a run reports."""

    log: str
    """Name in metrics.jsonl and trackers, after `train/` or `eval/`."""
    status: str
    """Name in status."""
    meaning: str


METRICS = (
    Metric("loss", "loss", "the objective"),
    Metric("rewards/accuracies", "rewardAccuracy", "share of pairs with reward(preferred) > reward(non-preferred)"),
    Metric("rewards/margins", "rewardMargin", "mean of reward(preferred) - reward(non-preferred)"),
    Metric(
        "rewards/chosen",
        "rewardChosen",
        "mean of beta * (logp - reference logp) of the preferred answers; SimPO and reference-free: of beta * logp,"
        " divided by length when normalised",
    ),
    Metric("rewards/rejected", "rewardRejected", "the same of the non-preferred answers"),
    Metric("logps/chosen", "logpsChosen", "mean of the sum of log-probabilities of the preferred answer"),
    Metric("logps/rejected", "logpsRejected", "the same of the non-preferred answer"),
    Metric("kl", "kl", "mean of reference logp - logp over all answers, nats per answer; may be negative"),
    Metric("kl/chosen", "klChosen", "the same over the preferred answers"),
    Metric("kl/rejected", "klRejected", "the same over the non-preferred answers"),
    Metric("kl_per_token", "klPerToken", "reference logp - logp over all answers, nats per answer token"),
    Metric("nll", "nll", "mean of -logp / length of the preferred answers: the RPO term before its weight"),
    Metric("grad_norm", "gradNorm", "norm of the gradient before clipping"),
    Metric("learning_rate", "learningRate", "learning rate of the step"),
    Metric("epoch", "epoch", "passes over the training data so far"),
    Metric("num_tokens", "tokens", "tokens trained on so far"),
    Metric("tokens_per_second", "tokensPerSecond", "tokens of the step per second"),
)
STATUS_NAMES = {metric.log: metric.status for metric in METRICS}
STATUS_DIGITS = 6
"""Significant digits in status, which people read; metrics.jsonl holds every value in full."""


def status_values(values: Mapping[str, float]) -> dict[str, float]:
    """Values by their names in status, rounded, counts in full; what is not finite has no JSON form and is left out.

    Raises:
        KeyError: a name that the table does not hold.
    """
    return {STATUS_NAMES[name]: _rounded(value) for name, value in values.items() if math.isfinite(value)}


def _rounded(value: float) -> float:
    return value if isinstance(value, int) else float(f"{value:.{STATUS_DIGITS}g}")


def checkpoint_values(evaluation: Mapping[str, float]) -> dict[str, float]:
    """An evaluation by the names that a checkpoint carries: evalLoss, evalRewardAccuracy."""
    named = status_values(evaluation)
    return {f"eval{name[0].upper()}{name[1:]}": value for name, value in named.items()}
