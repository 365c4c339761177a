"""Trackers: where the values of metrics.jsonl are shown as well, and what is said of one that fails.

A tracker holds the numbers of a run and its configuration, never the text of a row.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, StringConstraints
from pydantic_core import PydanticCustomError

from finetune_api.base import ApiModel, Flag, Matching, Text
from finetune_api.secrets import SecretKeyRef
from finetune_api.uris import DNS_NAME, MAX_URI

DEFAULT_PROJECT = "together"
"""Together's own."""
DEFAULT_WANDB = "https://api.wandb.ai"
DEFAULT_EXPERIMENT = "Default"
"""MLflow's own, which every server has."""
TITLE_LENGTH = 128

Title = Annotated[
    str,
    Matching(
        f"must have 1 to {TITLE_LENGTH} characters, none of them a control character",
        rf"^[^\x00-\x1f\x7f]{{1,{TITLE_LENGTH}}}$",
        max_length=TITLE_LENGTH,
    ),
]
PathPart = Annotated[
    str,
    Matching(
        f"must have 1 to {TITLE_LENGTH} characters, none of them a slash, a backslash, a colon, #, ?, % or a control"
        " character",
        rf"^[^/\\#?%:\x00-\x1f\x7f]{{1,{TITLE_LENGTH}}}$",
        max_length=TITLE_LENGTH,
    ),
]
Address = Annotated[
    str,
    Matching(
        "must be http://host[:port][/path] or https://host[:port][/path], without a user, a query or a fragment",
        rf"^https?://{DNS_NAME}(:[0-9]{{1,5}})?(/[-._~A-Za-z0-9]+)*/?$",
        max_length=MAX_URI,
    ),
]


def _web(value: str) -> str:
    if not re.fullmatch(r"https?://[!-~]+", value):
        raise PydanticCustomError("web", "Input should be an http:// or https:// address")
    return value


WebLink = Annotated[str, StringConstraints(strict=True, max_length=2048), AfterValidator(_web)]


def host_of(address: str) -> str:
    """The host of an Address, without its port."""
    return urlsplit(address).hostname or ""


class Wandb(ApiModel):
    """A run on Weights & Biases. An empty block is one with these defaults."""

    project: PathPart = DEFAULT_PROJECT
    """Project of the run; made where there is none."""
    name: Title | None = None
    """Name of the run. Absent = the job's."""
    entity: PathPart | None = None
    """User or team that owns the project. Absent = the default one of the API key."""
    base_url: Address = DEFAULT_WANDB
    """Address of the server's API. Its host must match the runtime's access.trackingHosts."""
    api_key_secret_ref: SecretKeyRef | None = None
    """API key; the pods get it as WANDB_API_KEY. Absent = what the runtime's podTemplate sets (WANDB_API_KEY, or
    WANDB_MODE=offline, which writes the run into `wandb/` at the output)."""


class Mlflow(ApiModel):
    """A run on an MLflow tracking server."""

    tracking_uri: Address
    """Address of the server. Its host must match the runtime's access.trackingHosts."""
    experiment: Title = DEFAULT_EXPERIMENT
    """Experiment of the run; made where there is none."""
    name: Title | None = None
    """Name of the run. Absent = the job's."""
    token_secret_ref: SecretKeyRef | None = None
    """Bearer token; the pods get it as MLFLOW_TRACKING_TOKEN. Absent = what the runtime's podTemplate sets, a token or
    MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD; else none."""


class Tracking(ApiModel):
    """Where else the values of metrics.jsonl go. A tracker that fails never holds training up: status.warnings says
    so."""

    wandb: Wandb | None = None
    """Weights & Biases."""
    tensorboard: Flag = False
    """True writes event files for TensorBoard into `tensorboard/` at the output."""
    mlflow: Mlflow | None = None
    """MLflow."""

    @property
    def without_secrets(self) -> Tracking:
        """The same for the trainer, which is given values of Secrets and needs no names of them."""
        wandb, mlflow = self.wandb, self.mlflow
        return Tracking(
            wandb=wandb.model_copy(update={"api_key_secret_ref": None}) if wandb else None,
            tensorboard=self.tensorboard,
            mlflow=mlflow.model_copy(update={"token_secret_ref": None}) if mlflow else None,
        )

    @property
    def chosen(self) -> tuple[Tracker, ...]:
        """The trackers that are asked for."""
        asked = {Tracker.WANDB: self.wandb, Tracker.TENSORBOARD: self.tensorboard, Tracker.MLFLOW: self.mlflow}
        return tuple(tracker for tracker, given in asked.items() if given)

    def place(self, tracker: Tracker) -> str:
        """The server of a tracker that is asked for; empty where it has none."""
        wandb, mlflow = self.wandb, self.mlflow
        if tracker is Tracker.WANDB and wandb is not None:
            return wandb.base_url
        return mlflow.tracking_uri if tracker is Tracker.MLFLOW and mlflow is not None else ""


class TrackingStatus(ApiModel):
    """Where a run can be looked at."""

    wandb_url: WebLink | None = None
    """Its page on W&B; absent while it is unknown, and for an offline run."""
    mlflow_url: WebLink | None = None
    """Its page on the MLflow server."""
    tensorboard_uri: Text | None = None
    """Folder of its event files."""


class Tracker(StrEnum):
    """The trackers, as people name them."""

    WANDB = "W&B"
    TENSORBOARD = "TensorBoard"
    MLFLOW = "MLflow"


class TrackerProblem(StrEnum):
    """Why a tracker does not get what is measured."""

    NO_KEY = "NoKey"
    REFUSED = "Refused"
    UNREACHABLE = "Unreachable"
    REJECTED = "Rejected"
    NOT_WRITABLE = "NotWritable"
    SILENT = "Silent"
    ENDED = "Ended"
    LATE = "Late"


ADDRESS_FIELDS = {Tracker.WANDB: "tracking.wandb.baseUrl", Tracker.MLFLOW: "tracking.mlflow.trackingUri"}
SECRET_FIELDS = {
    Tracker.WANDB: "tracking.wandb.apiKeySecretRef",
    Tracker.MLFLOW: "tracking.mlflow.tokenSecretRef",
}
PROBLEMS: dict[TrackerProblem, str] = {
    TrackerProblem.NO_KEY: "has no API key: set {secret}, or have the runtime's podTemplate set WANDB_API_KEY, or"
    " WANDB_MODE to offline",
    TrackerProblem.REFUSED: "refuses the credentials for {place} ({detail}): put valid ones into the Secret that"
    " {secret} names",
    TrackerProblem.UNREACHABLE: "cannot be reached at {place} ({detail}): check {address}, its server and the network",
    TrackerProblem.REJECTED: "does not take what is sent to {place} ({detail}): check {address}, and the version, store"
    " and log of the server",
    TrackerProblem.NOT_WRITABLE: "cannot write its files ({detail}): check the volume of the output",
    TrackerProblem.SILENT: "has given no sign of life for {detail} s and is started anew: check its server",
    TrackerProblem.ENDED: "has ended by itself ({detail}) and is started anew: see the pod's log",
    TrackerProblem.LATE: "had not taken every value {detail} s after the end of training: see metrics.jsonl for the"
    " rest",
}
"""What may befall a tracker, after its name; `detail` is a library's word for it."""
FAILED = "{tracker} {problem}. Training goes on; metrics.jsonl holds every value"
RECOVERED = "{tracker} had failed, is back, and has been sent every value"


def failed_sentence(tracking: Tracking, tracker: Tracker, problem: TrackerProblem, detail: str) -> str:
    """What a person reads of a tracker that fails."""
    said = PROBLEMS[problem].format(
        secret=SECRET_FIELDS.get(tracker, ""),
        address=ADDRESS_FIELDS.get(tracker, ""),
        place=tracking.place(tracker),
        detail=detail,
    )
    return FAILED.format(tracker=tracker, problem=said)


def recovered_sentence(tracker: Tracker) -> str:
    """What a person reads of a tracker that failed and does not any more."""
    return RECOVERED.format(tracker=tracker)
