"""Whether a status is worth a write: never when nothing changed; progress alone only as the budget grants it."""

from __future__ import annotations

import hashlib
from datetime import datetime, timedelta
from enum import Enum

from finetune_api.report import Report
from finetune_api.status import JobStatus, JobWarning

HEARTBEAT = timedelta(seconds=60)
"""How old a written lastReportTime may become while nothing else changes."""


class News(Enum):
    """What the difference between two statuses amounts to."""

    NONE = "none"
    PROGRESS = "progress"
    """Only progress, metrics, history, recovery, or the facts of a known warning: may wait."""
    EVENT = "event"
    """A condition, a time, a checkpoint, an attempt, a warning of a new kind: goes at once."""


def news(old: JobStatus | None, new: JobStatus) -> News:
    """What has changed from the stored status to the computed one."""
    if old is None:
        return News.EVENT
    if _without_progress(old) != _without_progress(new):
        return News.EVENT
    if _without_heartbeat(old) != _without_heartbeat(new) or _is_old(old, new):
        return News.PROGRESS
    return News.NONE


def urgent_part(report: Report) -> bytes:
    """What of a report cannot wait: all but figures. Of warnings their kinds, because the numbers in them move.

    A digest of it, because it is only ever compared, and the checkpoints of a thousand running pods weigh 60 MB.
    """
    figures = {"progress": None, "metrics": None, "recovery": None, "history": None, "warnings": ()}
    told = report.model_copy(update=figures).model_dump_json()
    kinds = sorted({warning.reason for warning in report.warnings})
    return hashlib.blake2b(f"{told}{kinds}".encode(), digest_size=16).digest()


def _without_progress(status: JobStatus) -> JobStatus:
    update = {"progress": None, "metrics": None, "recovery": None, "history": None}
    return status.model_copy(update={**update, "warnings": tuple(_kind(warning) for warning in status.warnings)})


def _kind(warning: JobWarning) -> JobWarning:
    """A warning without its facts, which may move with each step."""
    return JobWarning(reason=warning.reason, message="")


def _without_heartbeat(status: JobStatus) -> JobStatus:
    if status.progress is None:
        return status
    return status.model_copy(update={"progress": status.progress.model_copy(update={"last_report_time": None})})


def _is_old(old: JobStatus, new: JobStatus) -> bool:
    before = old.progress.last_report_time if old.progress else None
    after = new.progress.last_report_time if new.progress else None
    if before is None or after is None:
        return before != after
    return datetime.fromisoformat(after) - datetime.fromisoformat(before) >= HEARTBEAT
