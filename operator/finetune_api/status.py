"""What a FineTuneJob reports: conditions with their reasons, progress, metrics, checkpoints, data, attempts."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

from pydantic import Field, StringConstraints

from finetune_api.attempt import MAX_ATTEMPTS as MAX_ATTEMPTS
from finetune_api.attempt import Attempt as Attempt
from finetune_api.attempt import AttemptReason as AttemptReason
from finetune_api.base import ApiModel, Flag, Integer, Name, Text
from finetune_api.base import Time as Time
from finetune_api.data_status import MAX_DATA_ERRORS as MAX_DATA_ERRORS
from finetune_api.data_status import MAX_WARNINGS as MAX_WARNINGS
from finetune_api.data_status import DataError as DataError
from finetune_api.data_status import DataStatus as DataStatus
from finetune_api.data_status import TokenStatistics as TokenStatistics
from finetune_api.estimate import Estimate
from finetune_api.history import History as History
from finetune_api.progress import Metrics as Metrics
from finetune_api.progress import MetricValues as MetricValues
from finetune_api.progress import Progress as Progress
from finetune_api.progress import Recovery as Recovery
from finetune_api.resolved import Resolved as Resolved
from finetune_api.resolved import ResolvedFile as ResolvedFile
from finetune_api.resolved import ResolvedModel as ResolvedModel
from finetune_api.resolved import ResolvedRuntime as ResolvedRuntime
from finetune_api.tracking import TrackingStatus as TrackingStatus

MAX_CHECKPOINTS = 34
"""The 32 that a job may ask for, the best one and the merged one."""


class Phase(StrEnum):
    """Derived from the conditions, for people only."""

    PENDING = "Pending"
    PREPARING = "Preparing"
    QUEUED = "Queued"
    RUNNING = "Running"
    SUSPENDED = "Suspended"
    PUBLISHING = "Publishing"
    COMPLETED = "Completed"
    FAILED = "Failed"
    CANCELLED = "Cancelled"


class ConditionType(StrEnum):
    """The conditions of a FineTuneJob."""

    ACCEPTED = "Accepted"
    """Spec and references resolve. False: never final, looked at again on each change."""
    DATA_READY = "DataReady"
    """The prepare step has checked and tokenised the data."""
    RUNNING = "Running"
    """The training pod runs."""
    SUSPENDED = "Suspended"
    """No pod runs and none will until spec.suspend is false; its state is saved."""
    PUBLISHED = "Published"
    """Every requested output is where it was asked for."""
    COMPLETE = "Complete"
    """Final: training and publishing ended well."""
    FAILED = "Failed"
    """Final: the reason is the cause."""
    STALLED = "Stalled"
    """Abnormal when True: mirrors a permanent failure, for tools that read kstatus."""
    PROGRESS_STALE = "ProgressStale"
    """Abnormal when True: a running pod has given no report for a while. Training may go on all the same."""


class Reason(StrEnum):
    """Why a condition has its value. A condition that holds and has no cause of its own bears its type as reason."""

    # Accepted=False
    INVALID_SPEC = "InvalidSpec"
    RUNTIME_NOT_FOUND = "RuntimeNotFound"
    RUNTIME_AMBIGUOUS = "RuntimeAmbiguous"
    MODEL_NOT_ALLOWED = "ModelNotAllowed"
    LIMIT_EXCEEDED = "LimitExceeded"
    SOURCE_NOT_ALLOWED = "SourceNotAllowed"
    CLAIM_NOT_FOUND = "ClaimNotFound"
    ACCESS_MODE = "AccessMode"
    CONFIG_MAP_NOT_FOUND = "ConfigMapNotFound"
    SERVICE_ACCOUNT_NOT_FOUND = "ServiceAccountNotFound"
    CHECKPOINT_NOT_FOUND = "CheckpointNotFound"
    CHECKPOINT_NOT_READY = "CheckpointNotReady"
    NAME_CONFLICT = "NameConflict"
    # DataReady, Running, Published = False
    PENDING = "Pending"
    CHECKING = "Checking"
    OUTPUT_NOT_WRITABLE = "OutputNotWritable"
    QUEUED = "Queued"
    UNSCHEDULABLE = "Unschedulable"
    IMAGE_PULL_FAILED = "ImagePullFailed"
    CONTAINER_CONFIG_ERROR = "ContainerConfigError"
    SECRET_NOT_FOUND = "SecretNotFound"
    NODE_LOST = "NodeLost"
    EVICTED = "Evicted"
    INITIALIZING = "Initializing"
    FINISHED = "Finished"
    SUSPENDED = "Suspended"
    UPLOADING = "Uploading"
    UPLOAD_FAILED = "UploadFailed"
    # Suspended
    USER_REQUESTED = "UserRequested"
    RESUMED = "Resumed"
    """Suspended=False again."""
    # ProgressStale
    NO_REPORT = "NoReport"
    ENDPOINT_UNREACHABLE = "EndpointUnreachable"
    # Complete
    SUCCEEDED = "Succeeded"
    EARLY_STOPPED = "EarlyStopped"
    NO_FINAL_REPORT = "NoFinalReport"
    # Failed
    DATA_INVALID = "DataInvalid"
    USER_ERROR = "UserError"
    OUT_OF_MEMORY = "OutOfMemory"
    DIVERGED = "Diverged"
    CHECKPOINT_INVALID = "CheckpointInvalid"
    DATA_UNREACHABLE = "DataUnreachable"
    MODEL_UNAVAILABLE = "ModelUnavailable"
    PUBLISH_FAILED = "PublishFailed"
    STORAGE_FULL = "StorageFull"
    DEADLINE_EXCEEDED = "DeadlineExceeded"
    START_TIMEOUT = "StartTimeout"
    BACKOFF_LIMIT_EXCEEDED = "BackoffLimitExceeded"
    CANCELLED = "Cancelled"
    INTERNAL = "Internal"


class ConditionStatus(StrEnum):
    """Kubernetes' three values."""

    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


class Condition(ApiModel):
    """One observation of the job, in Kubernetes' usual shape."""

    type: Annotated[str, StringConstraints(max_length=64)]
    """Name of the condition."""
    status: ConditionStatus
    """True, False or Unknown."""
    reason: Annotated[str, StringConstraints(max_length=64)]
    """The cause, in one CamelCase word."""
    message: Annotated[str, StringConstraints(max_length=32768)]
    """The cause, in a sentence."""
    last_transition_time: Time
    """When status last changed."""
    observed_generation: Integer | None = None
    """Generation of the spec that this was said of."""


class CheckpointType(StrEnum):
    """Place of a checkpoint in the job."""

    INTERMEDIATE = "Intermediate"
    FINAL = "Final"
    FINAL_MERGED = "FinalMerged"
    """The final adapter merged into its base; fromCheckpoint goes on with the adapter itself."""


class Checkpoint(ApiModel):
    """A published checkpoint; `name` is what another job's fromCheckpoint takes."""

    name: Annotated[str, StringConstraints(max_length=128)]
    """JOB:STEP."""
    step: Integer
    """Optimiser step."""
    type: CheckpointType
    """Intermediate, Final, or FinalMerged: the final adapter merged into its base."""
    uri: Text
    """Its folder."""
    time: Time
    """When it was published."""
    size_bytes: Integer
    """Size of the folder."""
    sha256: Annotated[str, StringConstraints(max_length=64)]
    """Digest of the weights file, or of the list of digests where there are several."""
    best: Flag = False
    """Whether it had the best evaluation of all; JOB:best stands for it."""
    metrics: MetricValues = Field(default_factory=dict)
    """Of the newest evaluation at or before its step; of merged weights also mergeError."""


class OutputStatus(ApiModel):
    """Where the results lie."""

    adapter_uri: Text | None = None
    """The trained adapter."""
    model_uri: Text | None = None
    """The trained weights."""
    merged_uri: Text | None = None
    """The trained adapter merged into its base (output.merge)."""
    hf_url: Text | None = None
    """Page of the repository to which the final weights were pushed (output.hfRepo)."""
    report_uri: Text | None = None
    """The page that tells how the run went (report.html), with some of its rows."""


class JobWarning(ApiModel):
    """Something a person should know that did not stop the job."""

    reason: Annotated[str, StringConstraints(max_length=64)]
    """Kind, in one word."""
    message: Text
    """The facts, with numbers."""
    step: Integer | None = None
    """Step at which it was seen."""


def _without_empty(document: dict[str, Any]) -> dict[str, Any]:
    """`document` without maps and lists that hold nothing, or nothing but such."""
    inner = {key: _without_empty(value) if isinstance(value, dict) else value for key, value in document.items()}
    return {key: value for key, value in inner.items() if value not in ({}, [])}


class JobStatus(ApiModel):
    """What has become of the job; written by the operator alone."""

    observed_generation: Integer | None = None
    """Generation of the spec that this status speaks of."""
    id: Name | None = None
    """ft-<uid>."""
    output_name: Name | None = None
    """Folder of the result below the output URI."""
    phase: Phase | None = None
    """Derived from the conditions, for people only."""
    start_time: Time | None = None
    """When the operator started it; from then on the spec is immutable."""
    completion_time: Time | None = None
    """When it reached its final state."""
    conditions: Annotated[
        tuple[Condition, ...],
        Field(
            max_length=16,
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
        ),
    ] = ()
    """Accepted, DataReady, Running, Suspended, Published, Complete, Failed, Stalled, ProgressStale."""
    resolved: Resolved | None = None
    """What names and absent values became."""
    data: DataStatus | None = None
    """What the prepare step found in the data."""
    estimate: Estimate | None = None
    """What the job will take, reckoned before a GPU is asked for."""
    progress: Progress | None = None
    """How far training is."""
    recovery: Recovery | None = None
    """The newest complete state from which training goes on exactly."""
    active_seconds: Integer = 0
    """Seconds in which pods of the job ran, up to activeSince."""
    active_since: Time | None = None
    """Since when one runs; absent while none does."""
    metrics: Metrics | None = None
    """The latest values."""
    history: History | None = None
    """The course of the values in few points."""
    checkpoints: Annotated[tuple[Checkpoint, ...], Field(max_length=MAX_CHECKPOINTS)] = ()
    """All published checkpoints, oldest first."""
    output: OutputStatus | None = None
    """Where the results lie."""
    tracking: TrackingStatus | None = None
    """Where the run can be looked at in the trackers that the job names."""
    warnings: Annotated[tuple[JobWarning, ...], Field(max_length=MAX_WARNINGS)] = ()
    """What a person should know that did not stop the job."""
    attempts: Annotated[tuple[Attempt, ...], Field(max_length=MAX_ATTEMPTS)] = ()
    """The newest pods, oldest first."""
    restarts: Integer = 0
    """Attempts after failures that count against backoffLimit."""
    disruptions: Integer = 0
    """Attempts after preemptions and stops, which are free."""

    def to_json(self) -> dict[str, Any]:
        """The JSON form, without what is empty.

        Taking the last entry out of a map by server-side apply leaves a null there, which the schema refuses.
        """
        document = _without_empty(super().to_json())
        if self.resolved is not None and self.resolved.runtime is not None:
            document["resolved"]["runtime"]["spec"] = self.resolved.runtime.spec
        return document

    def condition(self, kind: ConditionType) -> Condition | None:
        """The condition of that type, if it was ever set."""
        return next((c for c in self.conditions if c.type == kind), None)

    def is_true(self, kind: ConditionType) -> bool:
        """Whether that condition holds."""
        found = self.condition(kind)
        return found is not None and found.status is ConditionStatus.TRUE

    @property
    def is_final(self) -> bool:
        """Complete or Failed: nothing changes any more."""
        return self.is_true(ConditionType.COMPLETE) or self.is_true(ConditionType.FAILED)
