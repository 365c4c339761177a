"""FineTuneRuntime: what the platform team allows and provides. Users name one; they never write one."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, StringConstraints

from finetune_api.base import ApiModel, Flag, Integer, Matching, Name, Number, Resource, Rule
from finetune_api.evaluation import MAX_EVALS
from finetune_api.hyperparameters import MAX_BATCH_SIZE, MAX_EPOCHS, MAX_LEARNING_RATE, MAX_SEQ_LENGTH
from finetune_api.job import MAX_CHECKPOINTS, MAX_SECONDS, ObjectMeta
from finetune_api.method import MethodType, ModuleName, TrainingKind
from finetune_api.names import ApiVersion
from finetune_api.resources import MAX_GPUS_PER_NODE, MAX_NODES, Cpu, GpuMemory, Memory, Resources
from finetune_api.tracking import DEFAULT_WANDB, host_of
from finetune_api.uris import ClaimFolder, ModelUri, OutputTemplate

Opaque = Annotated[dict[str, Any], Field(json_schema_extra={"x-kubernetes-preserve-unknown-fields": True})]
"""A Kubernetes structure passed on as it is; the API server judges it when the pod is made."""
Glob = Annotated[str, StringConstraints(strict=True, min_length=1, max_length=512)]
Globs = Annotated[tuple[Glob, ...], Field(max_length=64)]
LabelValue = Annotated[str, StringConstraints(strict=True, max_length=4096)]
StringMap = Annotated[dict[str, LabelValue], Field(max_length=64)]
OpaqueList = Annotated[tuple[Opaque, ...], Field(max_length=64)]
DeviceName = Annotated[
    str,
    Matching(
        "gpuResourceName must be the name of an extended resource, domain/name, such as nvidia.com/gpu",
        r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$",
        max_length=317,
    ),
]
MAX_PRICE = 100_000
BatchLimit = Annotated[Integer, Field(ge=1, le=MAX_BATCH_SIZE)]
SeqLimit = Annotated[Integer, Field(ge=1, le=MAX_SEQ_LENGTH)]


class ClaimAccess(ApiModel):
    """Claims that jobs may read and write."""

    read: Globs = ("finetune-*",)
    """Claims that jobs may read."""
    write: Globs = ("finetune-*",)
    """Claims that jobs may write."""


class UriAccess(ApiModel):
    """URI prefixes that jobs may read and write."""

    read: Globs = ("hf://",)
    """Prefixes that jobs may read."""
    write: Globs = ()
    """Prefixes that jobs may write."""


class Access(ApiModel):
    """What a job may touch. Entries are name globs; `{namespace}` is the job's namespace."""

    namespaces: Globs = ("*",)
    """Namespaces whose jobs may use this runtime."""
    secrets: Globs = ("finetune-*",)
    """Secrets whose values jobs may be given."""
    config_maps: Globs = ("finetune-*",)
    """Config maps that jobs may read."""
    claims: ClaimAccess = ClaimAccess()
    """Persistent volume claims."""
    uri_prefixes: UriAccess = UriAccess()
    """Repositories of the Hub and object stores: hf://, s3://, gs://, az://. A prefix admits what lies at it and below:
    s3://bucket is that bucket, and not s3://bucket-of-others. output.hfRepo needs hf://org/ to write."""
    https_hosts: Globs = ()
    """Hosts from which data may come by https://, redirects included. None of them is reached at an address of a
    private network."""
    tracking_hosts: Globs = (host_of(DEFAULT_WANDB),)
    """Hosts of trackers to which jobs may send their metrics, without ports."""


class Cache(ApiModel):
    """Models and data of the Hub, kept for all jobs of a namespace."""

    uri: ClaimFolder
    """`pvc://claim/path` in the namespace of the job. Preparing downloads into it, training only reads it. Several
    nodes need a claim that is ReadWriteMany."""


class SecretName(ApiModel):
    """A Secret in the job's namespace."""

    name: Annotated[Name, Field(min_length=1)]
    """Its name."""


class ClaimTemplate(ApiModel):
    """A claim for the output of jobs, made where it is missing; it outlives them."""

    labels: StringMap = Field(default_factory=dict)
    """Its labels."""
    annotations: StringMap = Field(default_factory=dict)
    """Its annotations."""
    spec: Opaque
    """PersistentVolumeClaimSpec: accessModes, resources.requests.storage, storageClassName."""


class PodTemplate(ApiModel):
    """What the platform team adds to each pod. Security settings, image and command cannot be changed here."""

    node_selector: StringMap = Field(default_factory=dict)
    """Labels of the nodes."""
    tolerations: OpaqueList = ()
    """Taints that the pods tolerate."""
    affinity: Opaque | None = None
    """Node and pod affinity."""
    priority_class_name: Name | None = None
    """PriorityClass of the pods."""
    scheduler_name: Name | None = None
    """Scheduler of the pods."""
    runtime_class_name: Name | None = None
    """RuntimeClass of the pods."""
    labels: StringMap = Field(default_factory=dict)
    """More labels of the pods."""
    annotations: StringMap = Field(default_factory=dict)
    """More annotations of the pods."""
    env: OpaqueList = ()
    """More environment of the trainer."""
    env_from: OpaqueList = ()
    """More environment of the trainer, from config maps or Secrets."""
    volumes: OpaqueList = ()
    """More volumes, of the kinds that the restricted Pod Security Standard admits."""
    volume_mounts: OpaqueList = ()
    """Where the trainer finds them."""


class DefaultOutput(ApiModel):
    """Where results go when a job does not say."""

    uri: OutputTemplate | None = None
    """`pvc://claim/path`, `s3://bucket/path`, `gs://bucket/path` or `az://container/path`; {namespace} and {name}
    expand."""


class Defaults(ApiModel):
    """What absent values of a job become."""

    resources: Resources = Resources()
    """Size of the training pod."""
    output: DefaultOutput = DefaultOutput()
    """Where results go."""


class Limits(ApiModel):
    """The most that a job may ask for."""

    max_nodes: Annotated[Integer, Field(ge=1, le=MAX_NODES)] | None = None
    """Training pods. Absent = 1: several need volumes that all of them can mount, and a network between them."""
    max_gpus_per_node: Annotated[Integer, Field(ge=0, le=MAX_GPUS_PER_NODE)] | None = None
    """GPUs of each pod. Absent = 1."""
    max_cpu: Cpu | None = None
    """CPU of each pod."""
    max_memory: Memory | None = None
    """Memory of each pod."""
    max_active_deadline_seconds: Annotated[Integer, Field(ge=1, le=MAX_SECONDS)] | None = None
    """activeDeadlineSeconds, and its value for a job that gives none."""


class KindLimits(ApiModel):
    """Whether a kind of training is supported for a model, and within which bounds."""

    supported: Flag | None = None
    """False refuses it. Absent = true."""
    min_batch_size: BatchLimit | None = None
    """Smallest batchSize."""
    max_batch_size: BatchLimit | None = None
    """Largest batchSize for SFT, and what `max` means."""
    max_batch_size_dpo: BatchLimit | None = None
    """Largest batchSize for DPO, and what `max` means."""

    def max_batch(self, method: MethodType) -> int | None:
        """Largest batch for `method`."""
        return self.max_batch_size_dpo if method is MethodType.DPO else self.max_batch_size


class LoraLimits(KindLimits):
    """Bounds of LoRA training."""

    default_rank: Annotated[Integer, Field(ge=1, le=1024)] | None = None
    """Rank when a job gives none."""
    max_rank: Annotated[Integer, Field(ge=1, le=1024)] | None = None
    """Largest rank."""
    target_modules: Annotated[tuple[ModuleName, ...], Field(max_length=64)] = ()
    """Layers that may have an adapter; all-linear stands for these. Empty = any."""


class ModelLimits(ApiModel):
    """Bounds for jobs on one model."""

    lora: LoraLimits = LoraLimits()
    """LoRA."""
    full: KindLimits = KindLimits()
    """Full fine-tuning."""
    min_seq_length: SeqLimit | None = None
    """Smallest maxSeqLength."""
    max_seq_length_sft: SeqLimit | None = None
    """Largest maxSeqLength for SFT, and its value when a job gives none."""
    max_seq_length_dpo: SeqLimit | None = None
    """Largest maxSeqLength for DPO, and its value when a job gives none."""
    max_epochs: Annotated[Integer, Field(ge=1, le=MAX_EPOCHS)] | None = None
    """Largest nEpochs."""
    max_evals: Annotated[Integer, Field(ge=0, le=MAX_EVALS)] | None = None
    """Largest nEvals."""
    max_checkpoints: Annotated[Integer, Field(ge=1, le=MAX_CHECKPOINTS)] | None = None
    """Largest nCheckpoints."""
    min_learning_rate: Annotated[Number, Field(gt=0, le=MAX_LEARNING_RATE)] | None = None
    """Smallest learningRate."""
    max_learning_rate: Annotated[Number, Field(gt=0, le=MAX_LEARNING_RATE)] | None = None
    """Largest learningRate."""
    supports_vision: Flag | None = None
    """False refuses trainVision. Absent: preparing finds out whether the model has a vision encoder."""

    def of_kind(self, kind: TrainingKind) -> KindLimits:
        """Bounds of LoRA or full training."""
        return self.lora if kind is TrainingKind.LORA else self.full

    def max_seq_length(self, method: MethodType) -> int | None:
        """Largest maxSeqLength for `method`."""
        return self.max_seq_length_dpo if method is MethodType.DPO else self.max_seq_length_sft


class RuntimeModel(ApiModel):
    """A model that jobs may name."""

    name: Annotated[str, StringConstraints(strict=True, min_length=1, max_length=256)]
    """What a job writes in spec.model."""
    source: ModelUri
    """Where its weights are: hf://org/name[@revision], pvc://claim/path, or a folder in an object store (s3://, gs://,
    az://)."""
    limits: ModelLimits = ModelLimits()
    """Bounds for jobs on it."""
    price_per_million_tokens: Annotated[Number, Field(ge=0, le=MAX_PRICE)] | None = None
    """What a million tokens cost, in a currency of the platform's choice: told in each job's status.estimate.price,
    charged by nobody here. Absent = no price is told."""


class RuntimeSpec(ApiModel):
    """What the platform team allows and provides."""

    default: Flag = False
    """Jobs that name no runtime use the one that is default."""
    image: Annotated[str, StringConstraints(strict=True, min_length=1, max_length=512)]
    """Trainer image."""
    image_pull_secrets: Annotated[tuple[SecretName, ...], Field(max_length=16)] = ()
    """Secrets with which the image is pulled, in the job's namespace."""
    service_account_name: Name = "default"
    """Service account of the pods, in the job's namespace; its token is never mounted."""
    access: Access = Access()
    """What a job may touch."""
    gpu_resource_name: DeviceName = "nvidia.com/gpu"
    """What a node calls its GPUs: the resource that gpusPerNode asks for."""
    gpu_memory: GpuMemory | None = None
    """Memory of each GPU, such as 141Gi. A job that cannot fit into it, whatever way it is computed, ends with
    Failed/OutOfMemory before it asks for one. Absent = nothing is refused for it."""
    pod_template: PodTemplate = PodTemplate()
    """What is added to each pod."""
    defaults: Defaults = Defaults()
    """What absent values of a job become."""
    limits: Limits = Limits()
    """The most that a job may ask for."""
    claim_template: ClaimTemplate | None = None
    """How a missing claim for the output is made, where the operator may (settings.createClaims). Absent: it is not."""
    termination_grace_period_seconds: Annotated[Integer, Field(ge=1, le=3600)] = 120
    """Time to save on SIGTERM; a save that does not fit is abandoned and the previous state stands."""
    models: Annotated[tuple[RuntimeModel, ...], Field(max_length=128)] = ()
    """Models that jobs may name. Empty = any Hub model; one with another URI needs an entry in access."""
    cache: Cache | None = None
    """Where downloaded models are kept. Absent: each pod downloads into temporary storage of its own."""
    allow_remote_code: Flag = False
    """True lets the pods run Python code that comes with a model, where transformers has no class of its own for it.
    Whoever can publish such a model then runs code with all that the pods may read and write."""
    offline: Flag = False
    """True keeps the Hub's client from the network."""

    def model_named(self, name: str) -> RuntimeModel | None:
        """The entry of the model list with that name."""
        return next((m for m in self.models if m.name == name), None)


class FineTuneRuntime(Resource):
    """A place to train: image, nodes, limits, and what jobs there may touch."""

    api_version: ApiVersion
    kind: Literal["FineTuneRuntime"]
    metadata: ObjectMeta
    spec: RuntimeSpec
    """What the platform team allows and provides."""

    rules: ClassVar[tuple[Rule, ...]] = ()


def runtime_from(manifest: dict[str, Any]) -> FineTuneRuntime:
    """Parse a manifest.

    Raises:
        pydantic.ValidationError: one entry per broken bound, with its path.
    """
    return FineTuneRuntime.model_validate(manifest, by_alias=True, by_name=False)
