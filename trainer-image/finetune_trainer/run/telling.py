"""What a run tells about itself, from numbers that the loop has anyway."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from threading import Lock
from time import monotonic

from finetune_api.metrics import status_values
from finetune_api.report import EarlyStop, WarningCode
from finetune_api.status import Checkpoint, JobWarning, Metrics, Progress, Recovery, TrackingStatus
from finetune_api.words import plain
from finetune_trainer.out.clock import now
from finetune_trainer.run.curves import Curves

RECENT_STEPS = 20
EPOCH_DIGITS, SPEED_DIGITS = 3, 1
"""Decimals that a person reads in a status; metrics.jsonl holds every value in full."""


class Teller:
    """Turns the loop's events into fields of the report."""

    def __init__(self, tell: Callable[..., None], total_steps: int, steps_per_epoch: int) -> None:
        self._tell = tell
        self._total = total_steps
        self._per_epoch = steps_per_epoch
        self._metrics = Metrics()
        self._curves = Curves()
        self._seconds: deque[float] = deque(maxlen=RECENT_STEPS)
        self._tokens: deque[int] = deque(maxlen=RECENT_STEPS)
        self._since = monotonic()
        self.step = 0
        """Steps done when the present one began."""
        self.warnings: tuple[JobWarning, ...] = ()
        self._lock = Lock()
        """Of the warnings: trackers have theirs from threads of their own."""

    def begins(self, step: int, tokens: int) -> None:
        """Steps follow on `step`; the next one is timed from here."""
        self._since, self.step = monotonic(), step
        self._tell(progress=self._progress(step, tokens))

    def epoch(self, step: int) -> float:
        """Passes over the data after `step` steps."""
        return step / self._per_epoch

    def speed(self, tokens: int, done: float) -> float:
        """Tokens per second of a step that was done at `done`, by `monotonic`, since the one before it or `begins`."""
        before, self._since = self._since, done
        self._seconds.append(self._since - before)
        self._tokens.append(tokens)
        return tokens / max(self._seconds[-1], 1e-9)

    def scoring(self, done: int, rows: int) -> None:
        """The reference is being scored."""
        self._tell(progress=Progress(display=f"reference {done}/{rows}", step=0, total_steps=self._total))

    def stepped(self, step: int, tokens: int, values: Mapping[str, float]) -> None:
        """A step is done: `tokens` so far, and its metrics."""
        self._measured(step, "train", values)
        self._tell(progress=self._progress(step, tokens), metrics=self._metrics, history=self._curves.history())

    def evaluated(self, step: int, values: Mapping[str, float]) -> None:
        """An evaluation after `step` is done."""
        self._measured(step, "eval", values)
        self._tell(metrics=self._metrics, history=self._curves.history())

    def stopped_early(self, stop: EarlyStop, tokens: int) -> None:
        """Training has ended before its last step: so it stays."""
        self._tell(early_stop=stop, progress=self._progress(stop.step, tokens, left=0))

    def published(self, checkpoints: tuple[Checkpoint, ...]) -> None:
        """These checkpoints are complete."""
        self._tell(checkpoints=checkpoints)

    def saved(self, step: int) -> None:
        """A recovery state is complete."""
        self._tell(recovery=Recovery(step=step, time=now()))

    def resumed(self, step: int) -> None:
        """The run goes on after `step`; 0 = from the start."""
        self._tell(resumed_from_step=step)

    def take_up(self, recovery: Recovery, evaluation: Mapping[str, float], warnings: tuple[JobWarning, ...]) -> None:
        """What the process before this one had told when it saved `recovery`."""
        with self._lock:
            new = {warning.reason for warning in self.warnings}
            self.warnings = (*(w for w in warnings if w.reason not in new), *self.warnings)
            self._tell(recovery=recovery, warnings=self.warnings)
        self._metrics = self._metrics.model_copy(update={"eval": status_values(evaluation)})
        self._tell(metrics=self._metrics)

    def warn(self, code: WarningCode, message: str, step: int | None = None) -> None:
        """Something a person should know; it replaces what was said of the same kind before."""
        with self._lock:
            others = tuple(w for w in self.warnings if w.reason != code)
            self.warnings = (*others, JobWarning(reason=code, message=plain(message), step=step))
            self._tell(warnings=self.warnings)

    def tracked(self, status: TrackingStatus) -> None:
        """The run can be looked at there."""
        self._tell(tracking=status)

    def _measured(self, step: int, stage: str, values: Mapping[str, float]) -> None:
        named = status_values(values)
        self._metrics = self._metrics.model_copy(update={stage: named})
        self._curves.add(step, stage, named)

    def _progress(self, step: int, tokens: int, left: int | None = None) -> Progress:
        """`left`: steps that follow; absent = all that were planned."""
        seconds = sum(self._seconds)
        left = self._total - step if left is None else left
        return Progress(
            display=f"{step}/{self._total}",
            step=step,
            total_steps=self._total,
            epoch=round(self.epoch(step), EPOCH_DIGITS),
            percentage=100 * step // self._total,
            tokens=tokens,
            tokens_per_second=round(sum(self._tokens) / seconds, SPEED_DIGITS) if seconds else None,
            estimated_remaining_seconds=round(left * seconds / len(self._seconds)) if seconds else None,
        )
