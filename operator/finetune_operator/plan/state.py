"""What a look at the cluster yields, and what it decides: frozen values, so that deciding is a pure function."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, ClassVar

from finetune_api.job import FineTuneJob
from finetune_api.report import Report
from finetune_api.runtime import FineTuneRuntime
from finetune_api.status import JobStatus, Reason
from finetune_api.trainer import Stage

Manifest = dict[str, Any]


def timestamp(moment: datetime) -> str:
    """RFC 3339, UTC, whole seconds: the only form of time in a status."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a job is not accepted (yet): never final, looked at again."""

    reason: Reason
    message: str


@dataclass(frozen=True, slots=True)
class Owner:
    """The controller of an object."""

    kind: str
    name: str
    uid: str


@dataclass(frozen=True, slots=True)
class Workload:
    """What matters of Kueue's object for a Job in a queue."""

    name: str
    uid: str
    active: bool = True
    """spec.active: whether Kueue may let it run."""
    reserved: bool = False
    """It has quota, or is giving it back: Kueue may have let the Job start."""
    said: str = ""
    """Kueue's sentence on why it does not run."""


@dataclass(frozen=True, slots=True)
class ChildJob:
    """What matters of a batch/v1 Job."""

    kind: ClassVar[str] = "Job"

    name: str
    uid: str
    owner: Owner | None
    being_deleted: bool = False
    started: str | None = None
    """status.startTime: when it was last let start."""
    suspended: bool = False
    """spec.suspend"""
    suspended_since: str | None = None
    queue: str | None = None
    """Kueue's queue that it is in: spec.suspend is Kueue's then."""
    workload: Workload | None = None
    """Kueue's object for it; None = there is none, or the operator may not see it."""
    parked: str | None = None
    """The queue that this operator took it out of."""
    mark: str | None = None
    """Why this operator holds it, `<reason>: <message>`; None = it does not."""
    halted: bool = False
    """Suspended, seen by the Job controller, and no pod of it active or terminating."""
    complete: bool = False
    failed: bool = False
    failed_message: str = ""

    @property
    def held(self) -> bool:
        """Whether this operator keeps it from running: nobody else will let it go on."""
        if self.mark is None:
            return False
        return self.suspended if self.queue is None else self.workload is not None and not self.workload.active

    @property
    def finished(self) -> bool:
        """Complete or failed: it makes no more pods."""
        return self.complete or self.failed


@dataclass(frozen=True, slots=True)
class Beside:
    """A Service or NetworkPolicy that has the name of one of ours."""

    kind: str
    name: str
    owner: Owner | None
    being_deleted: bool = False


@dataclass(frozen=True, slots=True)
class Waiting:
    """Why a pod does not run yet."""

    reason: Reason
    message: str


@dataclass(frozen=True, slots=True)
class Pod:
    """What matters of a pod of ours."""

    name: str
    uid: str
    job_uid: str
    """uid of the controlling Job."""
    created: str
    running: bool = False
    """The trainer runs and the pod is not being deleted."""
    leaving: bool = False
    """The trainer runs, and the pod is being deleted."""
    ip: str | None = None
    host_network: bool = False
    started: str | None = None
    """When the trainer began to run."""
    ended: str | None = None
    """When the trainer ended; None while it has not."""
    exit_code: int | None = None
    disrupted: str | None = None
    """Reason of the DisruptionTarget condition."""
    cause: str | None = None
    """The kubelet's word for the end (OOMKilled, Evicted), where it says more than Error."""
    node_said: str = ""
    """The sentence to that word, where it is the node's and not the trainer's."""
    last_word: str = ""
    """The termination message."""
    waiting: Waiting | None = None
    gone: bool = False
    """Deleted: known only from the watch's last event."""
    index: int | None = None
    """Which of several pods of a training it is; None = the only one."""
    peers: frozenset[str] = frozenset()
    """Names of the other pods of the same attempt."""

    @property
    def leads(self) -> bool:
        """Whether it is the pod that reports for all."""
        return not self.index


@dataclass(frozen=True, slots=True)
class Heard:
    """A pod's report and when it was heard."""

    report: Report
    at: str


class Fault(StrEnum):
    """Why a pod's answer was no report."""

    UNREACHABLE = "unreachable"
    """No answer in time, or no connection."""
    REFUSED = "refused"
    """Another status than 200, or compressed."""
    TOO_LONG = "too_long"
    MALFORMED = "malformed"
    """No HTTP, no JSON, or not to the letter of the schema."""
    FOREIGN = "foreign"
    """It speaks of another job or pod."""


@dataclass(frozen=True, slots=True)
class Silence:
    """A running pod that gives no report."""

    since: str
    """Its newest report, or when it was first to be asked."""
    fault: Fault
    """What was wrong with its newest answer."""
    too_long: bool = False
    """It has lasted for longer than a pod may be silent."""


@dataclass(frozen=True, slots=True)
class Observed:
    """The cluster as far as one job is concerned. A name that is absent was not found."""

    runtimes: tuple[FineTuneRuntime, ...] = ()
    broken_runtimes: Mapping[str, str] = field(default_factory=dict)
    """Name and sentence of runtimes that are stored but invalid."""
    parent: FineTuneJob | None = None
    """The job of fromCheckpoint."""
    claims: frozenset[str] = frozenset()
    access_modes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Of each claim."""
    config_maps: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """Keys of each config map."""
    service_accounts: frozenset[str] = frozenset()
    children: Mapping[Stage, ChildJob] = field(default_factory=dict)
    pods: Mapping[Stage, tuple[Pod, ...]] = field(default_factory=dict)
    """Pods controlled by this job's children, oldest first."""
    beside: tuple[Beside, ...] = ()
    """Services and NetworkPolicies by the names of ours; one that is absent was not found."""
    reports: Mapping[str, Heard] = field(default_factory=dict)
    """By pod uid."""
    silences: Mapping[str, Silence] = field(default_factory=dict)
    """By pod uid."""


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened, for `kubectl describe`."""

    type: str
    """Normal or Warning."""
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What one look decides. Objects first, then the status, then the events."""

    status: JobStatus
    create: tuple[Manifest, ...] = ()
    suspend: tuple[ChildJob, ...] = ()
    """Children to hold, each as it shall be."""
    resume: tuple[ChildJob, ...] = ()
    """Held children to let go on, each as it shall be."""
    events: tuple[Event, ...] = ()
    delete: bool = False
    """The FineTuneJob itself, whose time after the end is over; nothing else is done then."""
    look_again_after: float | None = None
    """Seconds; None = when something changes."""
