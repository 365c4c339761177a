"""Each log line about a job bears the job's namespace, name and uid as fields, whoever writes it.

Who works on a job says so once, and a filter adds the fields to every line of that task and of those that it starts.
"""

from __future__ import annotations

import logging
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(slots=True)
class Subject:
    """The job that a task works on."""

    namespace: str
    name: str
    uid: str | None = None
    """Known once the job has been read."""


_SUBJECT: ContextVar[Subject | None] = ContextVar("subject", default=None)


def about(namespace: str, name: str) -> None:
    """What this task logs from now on is about this job."""
    _SUBJECT.set(Subject(namespace, name))


def has_uid(uid: str | None) -> None:
    """The job that this task works on turns out to have this uid."""
    subject = _SUBJECT.get()
    if subject is not None:
        subject.uid = uid


class AboutJob(logging.Filter):
    """Adds `job` to the records of a task that works on one."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Let every record pass."""
        subject = _SUBJECT.get()
        if subject is not None:
            uid = {"uid": subject.uid} if subject.uid else {}
            record.job = {"namespace": subject.namespace, "name": subject.name, **uid}
        return True
