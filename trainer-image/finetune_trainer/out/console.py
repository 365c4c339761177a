"""A run as lines of text, for a terminal and for a pod's log."""

from __future__ import annotations

from collections.abc import Mapping
from time import monotonic

from finetune_api.estimate import Estimate
from finetune_api.report import EarlyStop, Report
from finetune_api.status import Checkpoint, DataStatus, Progress

SHOWN = {
    "loss": "loss",
    "rewardAccuracy": "accuracy",
    "rewardMargin": "margin",
    "klChosen": "kl chosen",
    "gradNorm": "grad norm",
    "learningRate": "lr",
}
GIB = 1024**3


class Console:
    """Prints what is new in a report; steps at most every `period` seconds, the last one always."""

    def __init__(self, period: float) -> None:
        self._period = period
        self._seen: Report | None = None
        self._last_step = -period

    def __call__(self, report: Report) -> None:
        """Print what `report` says beyond the one before it."""
        seen, self._seen = self._seen, report
        nothing = {"data": None, "estimate": None, "checkpoints": (), "warnings": (), "metrics": None, "progress": None}
        before = seen or report.model_copy(update=nothing)
        _prepared(report, before)
        if report.resumed_from_step and report.resumed_from_step != before.resumed_from_step:
            _print(f"going on after step {report.resumed_from_step}")
        if report.progress is not None and report.progress != before.progress:
            self._before_steps(report.progress)
        if report.metrics is not None:
            old_eval = before.metrics.eval if before.metrics else {}
            if report.metrics.eval and report.metrics.eval != old_eval:
                step = report.progress.step if report.progress else 0
                _print(f"evaluation after step {step}: {_values(report.metrics.eval)}")
            if report.progress and report.progress != before.progress and report.metrics.train:
                self._step(report.progress, report.metrics.train)
        for warning in report.warnings:
            if warning not in before.warnings:
                _print(f"warning {warning.reason}: {warning.message}")
        known = {(c.uri, c.time) for c in before.checkpoints}
        for checkpoint in report.checkpoints:
            if (checkpoint.uri, checkpoint.time) not in known:
                _print(checkpoint_line(checkpoint))
        if report.early_stop is not None and before.early_stop is None:
            _print(early_stop_line(report.early_stop))

    def _before_steps(self, progress: Progress) -> None:
        """What is done before the first step says itself how far it is."""
        if progress.display != f"{progress.step}/{progress.total_steps}" and self._due():
            _print(progress.display)

    def _due(self) -> bool:
        now = monotonic()
        due = now - self._last_step >= self._period
        self._last_step = now if due else self._last_step
        return due

    def _step(self, progress: Progress, metrics: Mapping[str, float]) -> None:
        if not self._due() and progress.step < progress.total_steps:
            return
        speed = f"  {progress.tokens_per_second:.0f} tokens/s" if progress.tokens_per_second else ""
        left = progress.estimated_remaining_seconds
        remaining = f"  {left // 3600}:{left % 3600 // 60:02}:{left % 60:02} left" if left else ""
        _print(f"step {progress.display}  epoch {progress.epoch:.2f}  {_values(metrics)}{speed}{remaining}")


def _prepared(report: Report, before: Report) -> None:
    """What was found in the data, and what follows from it."""
    if report.data is not None and report.data != before.data:
        _print(data_line(report.data))
    if report.estimate is not None and report.estimate != before.estimate:
        _print(estimate_line(report.estimate))


def _print(line: str) -> None:
    print(line, flush=True)


def data_line(data: DataStatus) -> str:
    """What was found in the data, in one line."""
    parts = [f"{data.rows} {data.format or ''} rows".replace("  ", " ")]
    if data.validation_rows:
        parts.append(f"{data.validation_rows} validation rows")
    if data.total_tokens:
        parts.append(f"{data.total_tokens} tokens")
    parts += [f"{n} {what}" for n, what in ((data.dropped, "dropped"), (data.duplicates, "duplicates")) if n]
    if data.error_count:
        parts.append(f"{data.error_count} bad")
    return "data: " + ", ".join(parts)


def estimate_line(estimate: Estimate) -> str:
    """What the job will take, in one line."""
    parts = [f"{estimate.train_tokens} tokens to train on"]
    parts += [f"{estimate.train_petaflop:.3g} PFLOP"] if estimate.train_petaflop is not None else []
    parts += [f"price {estimate.price:.2f}"] if estimate.price is not None else []
    if (least := estimate.gpu_memory_bytes) is not None and (fast := estimate.fast_gpu_memory_bytes) is not None:
        parts.append(f"{least / GIB:.1f} GiB of GPU memory at the least, {fast / GIB:.1f} GiB to be fast")
    elif estimate.memory is not None:
        parts.append(f"{estimate.memory.total / GIB:.1f} GiB of memory for tensors")
    return "estimate: " + ", ".join(parts)


def checkpoint_line(checkpoint: Checkpoint) -> str:
    """A published checkpoint, in one line."""
    best = ", the best so far" if checkpoint.best else ""
    return f"published {checkpoint.name} ({checkpoint.type}{best}): {checkpoint.uri}"


def early_stop_line(stop: EarlyStop) -> str:
    """Why training ended before its last step, in one line."""
    best = f", best {stop.best_value:.4g} at step {stop.best_step}" if stop.best_value is not None else ""
    return (
        f"stopped early after step {stop.step}: {stop.metric} did not improve in {stop.evaluations} evaluations{best}"
    )


def _values(metrics: Mapping[str, float]) -> str:
    return "  ".join(f"{label} {metrics[name]:.4g}" for name, label in SHOWN.items() if name in metrics)
