"""The steps that have been made, as numbers: one line of metrics.jsonl each, in order, and what follows from them.

A step is booked when it has been asked of the device and closed when the next one is booked: only then are its
numbers read, so that the device always has work while it is waited for. A step that the device skipped by itself,
because its gradient was not finite, is therefore known one step late. `settle` closes the last one too: before an
evaluation, a saved state, a checkpoint and the end, so that all of these know every step before them.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from finetune_api.failures import FailureCode
from finetune_api.method import MethodType
from finetune_api.report import WarningCode
from finetune_api.trainer import TrainerConfig
from finetune_trainer.failures import RunFailed, failed
from finetune_trainer.out.metrics import MetricsLog
from finetune_trainer.run.health import Health, observe
from finetune_trainer.run.late import Late
from finetune_trainer.run.telling import Teller

log = logging.getLogger(__name__)

MOST_SKIPPED, MOST_SKIPPED_IN_A_ROW = 10, 3
NAMED_LINES = 20
GENTLER = 3.0
"""A learning rate that was too high is usually divided by about this."""


@dataclass(frozen=True, slots=True)
class Account:
    """What the closed steps come to. Frozen, so that a saved one and the running one cannot mix."""

    skipped: int = 0
    """Steps without an update because the gradient was not finite."""
    skipped_in_a_row: int = 0
    health: Health = field(default_factory=Health)


@dataclass(frozen=True, slots=True)
class Entry:
    """A step as it is booked."""

    step: int
    """Counted from 1."""
    tokens: int
    """Of this step."""
    tokens_so_far: int
    """Trained on up to and including it."""
    rows: tuple[int, ...]
    late: Late
    """The metrics and `grad_norm`."""
    known: dict[str, float]
    """What needs no device: learning rate, epoch, tokens."""


class Ledger:
    """Closes steps: writes their lines, tells them, counts the skipped ones and gives up when they are too many."""

    def __init__(
        self,
        config: TrainerConfig,
        total_steps: int,
        metrics: MetricsLog,
        teller: Teller,
        lines: npt.NDArray[np.int64],
    ) -> None:
        """`lines` has the line number of each row in trainingFile."""
        self.account = Account()
        self.diverged: RunFailed | None = None
        """Set once too many steps were skipped."""
        self._config, self._total, self._lines = config, total_steps, lines
        self._metrics, self._teller = metrics, teller
        self._open: Entry | None = None

    def book(self, entry: Entry) -> None:
        """Take up a step that the device may still be at, and close the one before it."""
        before, self._open = self._open, entry
        if before is not None:
            self._close(before)

    def settle(self) -> None:
        """Close every step."""
        last, self._open = self._open, None
        if last is not None:
            self._close(last)

    def check(self) -> None:
        """Raises: RunFailed: Diverged or NeverFinite, once too many steps were skipped."""
        if self.diverged is not None:
            raise self.diverged

    def _close(self, entry: Entry) -> None:
        measured, done = entry.late.read()
        values = {**measured, **entry.known, "tokens_per_second": self._teller.speed(entry.tokens, done)}
        self._metrics.append(entry.step, "train", values)
        self._teller.stepped(entry.step, entry.tokens_so_far, values)
        health, findings = observe(self.account.health, entry.step, self._total, len(entry.rows), values)
        updated = math.isfinite(values["grad_norm"])
        self.account = Account(
            skipped=self.account.skipped + (not updated),
            skipped_in_a_row=0 if updated else self.account.skipped_in_a_row + 1,
            health=health,
        )
        for finding in findings:
            self._teller.warn(finding.code, finding.message, entry.step)
        if not updated:
            self._skipped(entry)

    def _skipped(self, entry: Entry) -> None:
        """Say which rows the step held, and whether it was one too many."""
        account = self.account
        lines = sorted(self._lines[list(entry.rows)].tolist())
        log.warning("step %d skipped: its gradient is not finite; lines of trainingFile: %s", entry.step, lines)
        message = f"{account.skipped} steps changed nothing because their gradients were not finite"
        self._teller.warn(WarningCode.STEP_SKIPPED, message, entry.step)
        too_many = account.skipped >= MOST_SKIPPED or account.skipped_in_a_row >= MOST_SKIPPED_IN_A_ROW
        if too_many and self.diverged is None:
            self.diverged = self._advice(entry, lines)

    def _advice(self, entry: Entry, lines: list[int]) -> RunFailed:
        norms = self.account.health.norms
        if not norms:
            shown = ", ".join(map(str, lines[:NAMED_LINES]))
            return failed(FailureCode.NEVER_FINITE, step=entry.step, lines=shown)
        hyper, method = self._config.hyperparameters, self._config.training_method
        beta = f" with beta {method.preference.beta:g}" if method.type is MethodType.DPO else ""
        return failed(
            FailureCode.DIVERGED,
            step=entry.step,
            skipped=self.account.skipped,
            learningRate=f"{hyper.learning_rate:g}",
            advised=f"{hyper.learning_rate / GENTLER:.1g}",
            norms=len(norms),
            typicalNorm=f"{sorted(norms)[len(norms) // 2]:.3g}",
            largestNorm=f"{max(norms):.3g}",
            maxGradNorm=f"{hyper.max_grad_norm:g}",
            objective=f"{method.type}{beta}",
        )
