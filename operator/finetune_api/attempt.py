"""One pod that prepared or trained, as the status keeps it when the pod itself is long gone."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import StringConstraints

from finetune_api.base import ApiModel, Integer, Name, Time

MAX_ATTEMPTS = 5
MAX_MESSAGE = 2048


class AttemptReason(StrEnum):
    """Why a pod ended, where it is not a FailureCode of the trainer or another word of the kubelet's."""

    SUCCEEDED = "Succeeded"
    EARLY_STOPPED = "EarlyStopped"
    """It succeeded before the last step: the evaluations had stopped improving."""
    STOPPED = "Stopped"
    """Exit code 3: it was asked to end, and saved."""
    HALTED = "Halted"
    """The same by the operator's own doing: the job was suspended, cancelled or out of time."""
    PEER_LOST = "PeerLost"
    """Exit code 4: another pod of the same training was lost."""
    OOM_KILLED = "OOMKilled"
    """The kernel killed it for its memory."""
    EVICTED = "Evicted"
    """Its node was short of memory or disk, it wrote more than its limit, or it was evicted by request."""
    PREEMPTED = "Preempted"
    """The scheduler gave its place to a pod of higher priority."""
    NODE_LOST = "NodeLost"
    """Its node is gone or did not answer."""
    POD_VANISHED = "PodVanished"
    """It is gone, and nobody saw how it ended."""
    NO_FINAL_REPORT = "NoFinalReport"
    """It failed without a last word."""


class Attempt(ApiModel):
    """One pod that prepared or trained."""

    pod: Name
    """Its name."""
    start_time: Time | None = None
    """When it started."""
    end_time: Time | None = None
    """When it ended."""
    exit_code: Integer | None = None
    """How its process ended."""
    reason: Annotated[str, StringConstraints(max_length=64)] | None = None
    """Why it ended; while it still runs, why it is about to, as it says itself."""
    message: Annotated[str, StringConstraints(max_length=MAX_MESSAGE)] | None = None
    """The same in a sentence."""
    resumed_from_step: Integer | None = None
    """Step of the recovery state that it went on from; 0 = from the start."""
