"""What a tracker's process is given, what it says, and what each tracker can do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from pydantic import Field

from finetune_api.base import ApiModel, Integer, Text
from finetune_api.tracking import Tracker, TrackerProblem, Tracking
from finetune_api.trainer import JobIdentity
from finetune_api.words import plain
from finetune_trainer.out.lines import Row

DETAIL_LENGTH = 200
FINISHED = "finished\n"
"""Said to a tracker's process before its input is closed, when training has ended well."""


class Task(ApiModel):
    """One tracker of one run."""

    tracker: Tracker
    job: JobIdentity
    tracking: Tracking
    metrics: Text
    """Path of metrics.jsonl."""
    output: Text
    """Path of the output folder."""
    output_uri: Text
    """URI of the output folder."""
    facts: dict[str, Any] = Field(default_factory=dict)
    """The run's configuration."""


class Said(ApiModel):
    """A line that a tracker's process writes."""

    url: Text | None = None
    """Where the run can be looked at, if there is such a place; said once it is open."""
    sent: Integer | None = None
    """Rows of metrics.jsonl that the tracker has been given, all that there are."""
    problem: TrackerProblem | None = None
    """Why the process ends."""
    detail: Text = ""
    """A library's word for it."""


class TrackerFailed(Exception):
    """A tracker does not do what it should."""

    def __init__(self, problem: TrackerProblem, detail: object = "") -> None:
        text = plain(str(detail))[:DETAIL_LENGTH] or type(detail).__name__
        super().__init__(text)
        self.problem, self.detail = problem, text


class TrackedRun(Protocol):
    """A run as a tracker keeps it. Whatever it holds already of the rows it is given is not doubled."""

    @property
    def url(self) -> str | None:
        """Where it can be looked at."""

    def send(self, rows: Sequence[Row]) -> None:
        """Hand over rows of metrics.jsonl, in their order.

        Raises:
            TrackerFailed
        """

    def close(self, finished: bool) -> None:
        """Nothing follows; `finished`: training has ended well, and will not go on.

        Raises:
            TrackerFailed
        """


def flat(facts: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """A configuration as `a.b.c` to text, what is absent left out."""
    found: dict[str, str] = {}
    for key, value in facts.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            found |= flat(value, f"{name}.")
        elif value is not None:
            found[name] = str(value)
    return found
