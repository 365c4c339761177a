"""What absent values of a job become: the model's entry in the runtime first, then the constants of the contract.

One home for the order, so that a manifest means the same in the cluster and on a laptop.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from finetune_api.hyperparameters import DEFAULT_BATCH_SIZE
from finetune_api.job import JobSpec
from finetune_api.method import ALL_LINEAR, DEFAULT_LORA_RANK, Lora, MethodType, TrainingKind
from finetune_api.quantity import amount
from finetune_api.runtime import ModelLimits, RuntimeModel
from finetune_api.status import Checkpoint, CheckpointType
from finetune_api.trainer import JobIdentity, LoraConfig, Start, TrainerConfig

BEST = "best"
"""fromCheckpoint: JOB:best."""


@dataclass(frozen=True, slots=True)
class ResolvedValues:
    """The values of a spec that may be absent, as they will be used."""

    batch_size: int
    lora: LoraConfig | None
    """None for full training."""
    max_seq_length: int | None
    """None = the model's own limit, which only the trainer knows."""


@dataclass(frozen=True, slots=True)
class Place:
    """What a spec does not say of a run: whose it is, what it starts from, and where it runs."""

    job: JobIdentity
    start: Start
    output_uri: str
    output_name: str
    gpus: int
    offline: bool
    mounts: dict[str, str]
    nodes: int = 1
    allow_remote_code: bool = False
    """The runtime's word."""
    https_hosts: tuple[str, ...] = ()
    shared_cache: bool = False
    gpu_memory: int | str | None = None
    """The runtime's word."""
    price_per_million_tokens: float | None = None
    """The word of the model's entry in the runtime."""


def configure(spec: JobSpec, values: ResolvedValues, place: Place) -> TrainerConfig:
    """The trainer's configuration: the only way from a spec to a run, in a cluster and on a laptop."""
    return TrainerConfig(
        job=place.job,
        start=place.start,
        training_file=spec.training_file,
        validation_file=spec.validation_file,
        data=spec.data,
        training_method=spec.training_method,
        training_kind=spec.training_type.type,
        lora=values.lora,
        train_vision=spec.train_vision,
        hyperparameters=spec.hyperparameters,
        batch_size=values.batch_size,
        max_seq_length=values.max_seq_length,
        evaluation=spec.evaluation,
        checkpointing=spec.checkpointing,
        merge=spec.merges,
        hf_repo=spec.hf_repo,
        tracking=spec.tracking.without_secrets,
        output_uri=place.output_uri,
        output_name=place.output_name,
        gpus=place.gpus,
        nodes=place.nodes,
        offline=place.offline,
        mounts=place.mounts,
        allow_remote_code=place.allow_remote_code,
        https_hosts=place.https_hosts,
        shared_cache=place.shared_cache,
        gpu_memory_bytes=None if place.gpu_memory is None else int(amount(place.gpu_memory)),
        price_per_million_tokens=place.price_per_million_tokens,
    )


def resolve(spec: JobSpec, entry: RuntimeModel | None, parent: LoraConfig | None = None) -> ResolvedValues:
    """Fill in what `spec` leaves out.

    Args:
        entry: the model's entry in the runtime, None where the runtime lists no models.
        parent: the adapter that the job continues (LoRA from LoRA), which passes on rank, alpha and modules.
    """
    limits = entry.limits if entry else ModelLimits()
    method, kind = spec.training_method.type, spec.training_type.type
    return ResolvedValues(
        batch_size=_batch_size(spec, limits, method, kind),
        lora=_lora(spec.training_type.lora or Lora(), limits, parent) if kind is TrainingKind.LORA else None,
        max_seq_length=spec.hyperparameters.max_seq_length or limits.max_seq_length(method),
    )


def inherited_conflict(spec: JobSpec, parent: LoraConfig) -> str | None:
    """The sentence that refuses a job which gives the adapter that it continues another shape; None = no conflict."""
    given = spec.training_type.lora or Lora()
    for name, mine, inherited in (
        ("rank", given.rank, parent.rank),
        ("alpha", given.alpha, parent.alpha),
        ("trainableModules", _as_set(given.trainable_modules), _as_set(parent.trainable_modules)),
    ):
        if mine is not None and mine != inherited:
            theirs = _shown(inherited)
            return f"lora.{name} is {_shown(mine)}, but the adapter of fromCheckpoint has {theirs}: leave it out"
    return None


def checkpoint_named(which: str, published: Iterable[Checkpoint]) -> Checkpoint | None:
    """What `which` in JOB:which stands for: a step, `best`, or, where it is empty, the final checkpoint."""
    weights = [c for c in published if c.type is not CheckpointType.FINAL_MERGED]
    if which == BEST:
        found = [c for c in weights if c.best]
    elif which:
        found = [c for c in weights if c.step == int(which)]
    else:
        found = [c for c in weights if c.type is CheckpointType.FINAL]
    return found[-1] if found else None


def _batch_size(spec: JobSpec, limits: ModelLimits, method: MethodType, kind: TrainingKind) -> int:
    given = spec.hyperparameters.batch_size
    if isinstance(given, int):
        return given
    return limits.of_kind(kind).max_batch(method) or DEFAULT_BATCH_SIZE


def _lora(given: Lora, limits: ModelLimits, parent: LoraConfig | None) -> LoraConfig:
    if parent is not None:
        return parent.model_copy(update={"dropout": given.dropout or 0.0})
    rank = given.rank or limits.lora.default_rank or limits.lora.max_rank or DEFAULT_LORA_RANK
    modules = given.trainable_modules or (ALL_LINEAR,)
    return LoraConfig(
        rank=rank,
        alpha=given.alpha if given.alpha is not None else 2.0 * rank,
        dropout=given.dropout or 0.0,
        trainable_modules=(limits.lora.target_modules or modules) if modules == (ALL_LINEAR,) else modules,
    )


def _as_set(modules: tuple[str, ...] | None) -> frozenset[str] | None:
    return None if modules is None else frozenset(modules)


def _shown(value: object) -> str:
    return f"[{', '.join(sorted(value))}]" if isinstance(value, frozenset) else f"{value:g}"


def model_uri(model: str, entry: RuntimeModel | None) -> str | None:
    """The URI of `spec.model`: of its entry, or its own; None for a name that is neither listed nor a Hub id."""
    if entry is not None:
        return source_uri(entry.source)
    return source_uri(model) if "/" in model else None


def starting_uri(spec: JobSpec, entry: RuntimeModel | None) -> str | None:
    """The URI, with its revision, of the weights that `model` and `fromHfModel` name; None as `model_uri`."""
    base = model_uri(spec.model or "", entry)
    if base is None:
        return None
    uri = source_uri(spec.from_hf_model) if spec.from_hf_model else base
    return f"{uri}@{spec.hf_model_revision}" if spec.hf_model_revision else uri


def same_as(spec: JobSpec, entry: RuntimeModel | None) -> str | None:
    """The URI of the model whose architecture the weights of `fromHfModel` must have; None where there are none."""
    return model_uri(spec.model or "", entry) if spec.from_hf_model else None


def revision_conflict(spec: JobSpec, entry: RuntimeModel | None) -> str | None:
    """The sentence that refuses hfModelRevision for a model whose source the runtime has settled; None = none."""
    if spec.hf_model_revision is None or spec.from_hf_model is not None or entry is None:
        return None
    uri = source_uri(entry.source)
    if uri.startswith("hf://") and "@" not in uri:
        return None
    why = "settles it" if uri.startswith("hf://") else "is not on the Hub"
    return (
        f"hfModelRevision is {spec.hf_model_revision}, but the runtime has model {entry.name} as {uri}, which {why}:"
        " leave it out"
    )


def source_uri(source: str) -> str:
    """The URI of a model's source; one without a scheme is on the Hub."""
    return source if "://" in source else f"hf://{source}"
