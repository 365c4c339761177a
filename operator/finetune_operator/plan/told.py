"""What the pods have told: a report while they run, a last word when they end, and how both enter the status.

A report is believed only from a pod of ours about this very job. Sentences are rendered here, from codes; numbers
that JSON cannot carry are left out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable

from pydantic import ValidationError

from finetune_api.findings import DATA_SENTENCES, DataErrorCode
from finetune_api.history import History, joined
from finetune_api.report import Report
from finetune_api.schedule import offered, spaced
from finetune_api.status import (
    MAX_CHECKPOINTS,
    Checkpoint,
    DataStatus,
    JobStatus,
    JobWarning,
    Metrics,
    Resolved,
    ResolvedModel,
)
from finetune_operator.plan.reading import read_report
from finetune_operator.plan.state import Heard, Pod

UNKNOWN_ERROR = "the row is invalid"
MAX_TOLD_BYTES = 160 * 1024
"""More than any run of our trainer tells; a report that would lead beyond it gives figures only."""
TOLD = {"data", "metrics", "history", "checkpoints", "warnings"}
TO_THE_MINUTE = len("2026-01-31T12:00")


def last_word(pod: Pod, job_uid: str) -> Report | None:
    """The termination message of an ended pod; None if there is none, or it speaks of another job or pod.

    A pod that could not read its configuration knows itself, and not its job.
    """
    if not pod.last_word:
        return None
    try:
        report = read_report(pod.last_word)
    except ValidationError:
        return None
    known = (report.job_uid, report.pod_uid) in ((job_uid, pod.uid), (job_uid, None), ("", pod.uid))
    return report if known else None


def report_of(pod: Pod, heard: Heard | None, job_uid: str) -> Report | None:
    """All that a pod has said: its last report, and over it the last word, which may be cut short."""
    last = last_word(pod, job_uid)
    if last is None or heard is None:
        return last or (heard.report if heard else None)
    before = heard.report
    said = {name: value for name, value in last if value not in (None, ())}
    said["checkpoints"] = _together(before.checkpoints, last.checkpoints)
    said["data"] = _longer(before.data, last.data)
    return before.model_copy(update=said)


def retold(status: JobStatus, pod: Pod, report: Report, at: str, n_checkpoints: int) -> JobStatus:
    """The status with a pod's report in it.

    Args:
        at: when it was heard.
        n_checkpoints: checkpoints that the job asks for; any other is there only while it is the best.
    """
    progress = report.progress.model_copy(update={"last_report_time": at}) if report.progress else status.progress
    data = _longer(status.data, _rendered(report.data)) if report.data else status.data
    checkpoints = _together(status.checkpoints, tuple(_finite_checkpoint(c) for c in report.checkpoints))
    total = status.resolved.total_steps if status.resolved else None
    few = {
        "resolved": _resolved(status.resolved, report.resolved),
        "estimate": report.estimate or status.estimate,
        "progress": progress,
        "recovery": report.recovery or status.recovery,
        "output": report.output or status.output,
        "tracking": report.tracking or status.tracking,
    }
    many = {
        "data": data,
        "metrics": _finite(report.metrics) or status.metrics,
        "history": _history(status, report, at, over=pod.ended is not None),
        "checkpoints": offered(checkpoints, spaced(n_checkpoints, total)) if total else checkpoints,
        "warnings": tuple(_printable(warning) for warning in report.warnings) or status.warnings,
    }
    whole = status.model_copy(update={**few, **many})
    return whole if _size(whole) <= MAX_TOLD_BYTES else status.model_copy(update=few)


def _size(status: JobStatus) -> int:
    """Bytes of what pods have told as the API server may write it: six for each character beyond ASCII, <, > and &."""
    told = json.dumps(status.model_dump(mode="json", include=TOLD, exclude_none=True), separators=(",", ":"))
    return len(told) + 5 * sum(told.count(mark) for mark in "<>&")


def _history(status: JobStatus, report: Report, at: str, *, over: bool) -> History | None:
    """At most once a minute, because curves are most of what a status weighs; that of a pod that has ended at once.

    The minute of the stored report tells when that was, so that a restarted operator knows it too.
    """
    before = status.progress.last_report_time if status.progress and status.history else None
    if before is not None and before[:TO_THE_MINUTE] == at[:TO_THE_MINUTE] and not over:
        return status.history
    return joined(status.history, report.history)


def _printable(warning: JobWarning) -> JobWarning:
    """A pod's own words, without what would steer a terminal."""
    return warning.model_copy(update={"message": "".join(c if c.isprintable() else " " for c in warning.message)})


def _resolved(ours: Resolved | None, theirs: Resolved | None) -> Resolved | None:
    """Prepare knows commits, sizes and steps; everything else was settled by the first look."""
    if ours is None or theirs is None:
        return ours
    found = {
        name: getattr(theirs, name)
        for name in ("training_file", "validation_file", "max_seq_length", "total_steps")
        if getattr(theirs, name) is not None
    }
    return ours.model_copy(update={**found, "model": _resolved_model(ours.model, theirs.model)})


def _resolved_model(ours: ResolvedModel | None, theirs: ResolvedModel | None) -> ResolvedModel | None:
    if ours is None or theirs is None:
        return ours
    update = {"revision": theirs.revision or ours.revision, "parameters": theirs.parameters or ours.parameters}
    return ours.model_copy(update=update)


def _rendered(data: DataStatus) -> DataStatus:
    """The data report with the sentences of its codes."""
    errors = tuple(e.model_copy(update={"message": _sentence(e.code)}) for e in data.errors)
    return data.model_copy(update={"errors": errors})


def _sentence(code: str) -> str:
    return DATA_SENTENCES[DataErrorCode(code)] if code in set(DataErrorCode) else UNKNOWN_ERROR


def _longer(before: DataStatus | None, after: DataStatus | None) -> DataStatus | None:
    """The later report, unless it is the earlier one with its errors cut to fit a last word."""
    if before is None or after is None:
        return after or before
    cut = before.error_count == after.error_count and len(after.errors) < len(before.errors)
    return after.model_copy(update={"errors": before.errors}) if cut else after


def _together(before: Iterable[Checkpoint], after: Iterable[Checkpoint]) -> tuple[Checkpoint, ...]:
    """Both lists, the later word for each folder, oldest first; the later one also says which is best."""
    later = {c.uri: c for c in after}
    found = any(c.best for c in later.values())
    earlier = {c.uri: c.model_copy(update={"best": c.best and not found}) for c in before}
    return tuple(sorted((earlier | later).values(), key=lambda c: c.step)[-MAX_CHECKPOINTS:])


def _finite(metrics: Metrics | None) -> Metrics | None:
    if metrics is None:
        return None
    return Metrics(train=_numbers(metrics.train), eval=_numbers(metrics.eval))


def _finite_checkpoint(checkpoint: Checkpoint) -> Checkpoint:
    return checkpoint.model_copy(update={"metrics": _numbers(checkpoint.metrics)})


def _numbers(values: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in values.items() if math.isfinite(value)}
