"""What the operator tells the trainer: one TrainerConfig, the same for preparing and for training.

It embeds the spec's own models and adds only what names became: sources as URIs, volumes as folders.

The trainer's image is the platform team's and may be older than the operator. So a field that is new gets a default
that means what was done before, a released default never changes, and what has its default value is not written: a
trainer that does not know a field then runs every job that does not use it.
"""

from __future__ import annotations

from enum import IntEnum, StrEnum
from typing import Annotated, Any

from pydantic import Field

from finetune_api.base import ApiModel, Flag, Integer, Name, Number, Text
from finetune_api.data import DataOptions
from finetune_api.evaluation import Evaluation
from finetune_api.hyperparameters import Hyperparameters
from finetune_api.job import Checkpointing
from finetune_api.method import TrainingKind, TrainingMethod
from finetune_api.tracking import Tracking


class ExitCode(IntEnum):
    """How the trainer ends. 10 to 19 are the user's to mend and are never retried."""

    DONE = 0
    STOPPED = 3
    """Stopped on request (SIGTERM); the newest complete state stands."""
    PEER_LOST = 4
    """Another of the processes that train as one has ended."""
    BAD_CONFIG = 10
    DATA_INVALID = 11
    MODEL_UNAVAILABLE = 13
    OUT_OF_MEMORY = 14
    DIVERGED = 15
    CHECKPOINT_INVALID = 16
    DATA_UNREACHABLE = 20
    MODEL_UNREACHABLE = 21
    PUBLISH_FAILED = 22


NOT_RETRIED = range(10, 20)


class JobIdentity(ApiModel):
    """Whose training this is."""

    namespace: Name
    name: Name
    uid: Name


class Start(ApiModel):
    """The weights that training starts from, and that are the reference of DPO."""

    model: Text
    """URI of full weights: hf://org/name[@revision], pvc://claim/path, s3:// gs:// az:// or file:///path."""
    adapter: Text | None = None
    """URI of the LoRA adapter on top of them, when a LoRA job is continued."""
    same_as: Text | None = None
    """URI of the model whose architecture and size the weights must have (fromHfModel)."""
    sha256: Annotated[str, Field(max_length=64)] | None = None
    """Digest that the checkpoint must have: of the adapter if there is one, else of the model."""


class LoraConfig(ApiModel):
    """The adapter, all absent values resolved."""

    rank: Integer
    alpha: Number
    dropout: Number
    trainable_modules: tuple[str, ...]


class TrainerConfig(ApiModel):
    """All that a run needs to know."""

    job: JobIdentity
    """Whose training this is."""
    start: Start
    """Starting weights."""
    training_file: Text
    """URI of the training rows."""
    validation_file: Text | None = None
    """URI of the validation rows."""
    data: DataOptions = DataOptions()
    """What is done with odd rows, as in the spec."""
    training_method: TrainingMethod
    """The objective, as in the spec."""
    training_kind: TrainingKind
    """Adapter or all weights."""
    lora: LoraConfig | None = None
    """The adapter; None for full training."""
    train_vision: Flag = False
    """The vision encoder is trained too."""
    hyperparameters: Hyperparameters
    """The optimisation, as in the spec."""
    batch_size: Integer
    """Pairs or rows per optimiser step, resolved."""
    max_seq_length: Integer | None = None
    """Longest sequence in tokens; None = the model's own limit."""
    evaluation: Evaluation
    """Evaluations, as in the spec."""
    checkpointing: Checkpointing
    """Checkpoints, as in the spec."""
    merge: Flag = False
    """Whether to publish the final adapter also merged into its base."""
    hf_repo: Name | None = None
    """Repository of the Hub to which the final weights are pushed."""
    tracking: Tracking = Tracking()
    """Trackers, as in the spec, but for the names of Secrets."""
    output_uri: Text
    """Folder that holds the outputs of jobs."""
    output_name: Name
    """Folder of this job below it; empty = the output URI itself."""
    gpus: Integer = 0
    """GPUs of this pod; 0 = CPU."""
    nodes: Integer = 1
    """Pods that train as one."""
    gpu_memory_bytes: Integer | None = None
    """Memory of each GPU; None = not known, and nothing is refused for it."""
    price_per_million_tokens: Number | None = None
    """What the platform asks for the model; None = no price is told."""
    allow_remote_code: Flag = False
    """Code that comes with the model may be run; only the runtime can say so."""
    offline: Flag = False
    """The Hub's client stays off the network."""
    https_hosts: tuple[str, ...] = ()
    """Globs of the hosts from which data may come by https."""
    shared_cache: Flag = False
    """The cache of models outlives the pod: preparing fetches the weights too, and training only reads them."""
    mounts: dict[str, str] = Field(default_factory=dict)
    """Folder of each volume: `pvc://claim` or `configmap://name` to a path."""

    def to_json(self) -> dict[str, Any]:
        """The JSON form for the pod, without default values."""
        return self.model_dump(mode="json", exclude_none=True, exclude_defaults=True)


class Stage(StrEnum):
    """The two programs of a job."""

    PREPARE = "Prepare"
    TRAIN = "Train"
