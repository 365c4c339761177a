"""What all jobs are doing, counted from what the watch tells: for Prometheus, and for no decision.

Counters begin with this process: a job that was final when it was first seen has been counted by an earlier one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from finetune_api.attempt import AttemptReason
from finetune_api.job import job_from
from finetune_api.status import ConditionType, Phase, Reason, Resolved
from finetune_operator.metrics import (
    DISRUPTIONS,
    FINISHED,
    GPU_SECONDS,
    GPUS,
    JOB_DURATION,
    JOBS,
    JOBS_STALE,
    PROGRESS_LAG,
    RESTARTS,
)
from finetune_operator.plan.admit import runtime_of
from finetune_operator.plan.size import size_of

Manifest = dict[str, Any]
Key = tuple[str, str]
FINAL = (Phase.COMPLETED, Phase.FAILED, Phase.CANCELLED)
OTHER = "Other"
DISRUPTED = (
    AttemptReason.EVICTED,
    AttemptReason.PREEMPTED,
    AttemptReason.NODE_LOST,
    AttemptReason.POD_VANISHED,
    AttemptReason.STOPPED,
    AttemptReason.PEER_LOST,
)
"""Why a pod ends without its fault."""


@dataclass(frozen=True, slots=True)
class Gpus:
    """What a job holds while it trains."""

    runtime: str
    number: int
    since: float
    """On the census's clock; from here it is still to be counted."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A job as far as it is counted."""

    phase: Phase
    stale: bool
    reported: str | None
    """When a running job was last heard."""
    disruptions: int
    restarts: int
    ended: frozenset[str]
    """Pods whose end the status has told of; none of a job that is final."""
    gpus: Gpus | None


class Census:
    """All jobs that the watch has told of.

    Args:
        clock: seconds that only grow.
        now: the time of day, which reports carry.
    """

    def __init__(self, clock: Callable[[], float], now: Callable[[], datetime]) -> None:
        self._clock, self._now = clock, now
        self._jobs: dict[Key, Entry] = {}
        self._runtimes: set[str] = set()

    def saw(self, key: Key, manifest: Manifest) -> None:
        """Note a job as it is now, and count what has happened to it since."""
        status = manifest.get("status") or {}
        before, phase = self._jobs.get(key), _phase(status)
        self._charge(before)
        running = phase is Phase.RUNNING
        self._jobs[key] = now = Entry(
            phase=phase,
            stale=_is_true(status, "ProgressStale") and phase not in FINAL,
            reported=(status.get("progress") or {}).get("lastReportTime") if running else None,
            disruptions=status.get("disruptions", 0),
            restarts=status.get("restarts", 0),
            ended=frozenset(a["pod"] for a in _ends(status)) if phase not in FINAL else frozenset(),
            gpus=self._gpus(manifest) if running and _is_true(status, ConditionType.RUNNING) else None,
        )
        if before is not None:
            _count(before, now, status)

    def gone(self, key: Key) -> None:
        """Forget a deleted job."""
        self._charge(self._jobs.pop(key, None))

    def tell(self) -> None:
        """Set the gauges, and count GPU time up to now."""
        phases = Counter(entry.phase for entry in self._jobs.values())
        for phase in Phase:
            JOBS.labels(phase.value).set(phases[phase])
        JOBS_STALE.set(sum(entry.stale for entry in self._jobs.values()))
        reported = [entry.reported for entry in self._jobs.values() if entry.reported]
        oldest = datetime.fromisoformat(min(reported)) if reported else None
        PROGRESS_LAG.set(max(0.0, (self._now() - oldest).total_seconds()) if oldest else 0.0)
        self._tell_gpus()

    def _tell_gpus(self) -> None:
        held: Counter[str] = Counter()
        for key, entry in self._jobs.items():
            if entry.gpus is not None:
                self._charge(entry)
                held[entry.gpus.runtime] += entry.gpus.number
                self._jobs[key] = replace(entry, gpus=replace(entry.gpus, since=self._clock()))
        for runtime in self._runtimes:
            GPUS.labels(runtime).set(held[runtime])

    def _charge(self, entry: Entry | None) -> None:
        """Count the GPU time of a job since it was last counted."""
        if entry is not None and entry.gpus is not None:
            seconds = max(0.0, self._clock() - entry.gpus.since)
            GPU_SECONDS.labels(entry.gpus.runtime).inc(seconds * entry.gpus.number)

    def _gpus(self, manifest: Manifest) -> Gpus | None:
        try:
            job = job_from(manifest)
            resolved = (job.status.resolved if job.status else None) or Resolved()
            size = size_of(job, runtime_of(resolved))
        except ValueError:  # of another version: it is left alone, and not counted
            return None
        if size.gpus == 0 or resolved.runtime is None:
            return None
        self._runtimes.add(resolved.runtime.name)
        return Gpus(resolved.runtime.name, size.nodes * size.gpus, self._clock())


def _count(before: Entry, now: Entry, status: Manifest) -> None:
    """Count what has changed from one sight of a job to the next."""
    for reason in _lost_to(before, now, status):
        DISRUPTIONS.labels(reason).inc()
    RESTARTS.inc(max(0, now.restarts - before.restarts))
    if now.phase in FINAL and before.phase not in FINAL:
        FINISHED.labels(now.phase.value, _reason(status)).inc()
        started, ended = status.get("startTime"), status.get("completionTime")
        if started and ended:
            lasted = datetime.fromisoformat(ended) - datetime.fromisoformat(started)
            JOB_DURATION.labels(now.phase.value).observe(lasted.total_seconds())


def _lost_to(before: Entry, now: Entry, status: Manifest) -> list[str]:
    """Why pods were disrupted since: as many reasons as there were disruptions."""
    number = max(0, now.disruptions - before.disruptions)
    fresh = [a.get("reason") for a in _ends(status) if a["pod"] not in before.ended]
    told = [reason for reason in fresh if reason in DISRUPTED][-number:] if number else []
    return [*told, *[OTHER] * (number - len(told))]


def _ends(status: Manifest) -> list[Manifest]:
    return [a for a in status.get("attempts") or () if isinstance(a, dict) and a.get("pod") and a.get("endTime")]


def _phase(status: Manifest) -> Phase:
    """The phase; a job that nobody has looked at yet is pending."""
    phase = status.get("phase")
    return Phase(phase) if phase in tuple(Phase) else Phase.PENDING


def _reason(status: Manifest) -> str:
    """Why the job is final: one of ours, so that their number is bounded."""
    final = (ConditionType.COMPLETE, ConditionType.FAILED)
    reasons = [c.get("reason") for c in _conditions(status) if c.get("type") in final and c.get("status") == "True"]
    return reasons[0] if reasons and reasons[0] in tuple(Reason) else OTHER


def _is_true(status: Manifest, kind: str) -> bool:
    return any(c.get("type") == kind and c.get("status") == "True" for c in _conditions(status))


def _conditions(status: Manifest) -> list[Manifest]:
    return [c for c in status.get("conditions") or () if isinstance(c, dict)]
