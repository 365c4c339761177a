"""What a job may ask for: its size within the runtime's limits, its hyperparameters within the model's."""

from __future__ import annotations

from collections.abc import Iterator

from finetune_api.job import FineTuneJob
from finetune_api.method import MethodType, TrainingKind
from finetune_api.quantity import amount
from finetune_api.resolve import ResolvedValues
from finetune_api.runtime import LoraLimits, ModelLimits, RuntimeModel, RuntimeSpec
from finetune_api.status import Reason
from finetune_operator.plan.size import Size
from finetune_operator.plan.state import Refusal

Bound = int | float | None


def size_refused(size: Size, name: str, runtime: RuntimeSpec) -> Refusal | None:
    """The refusal of a training pod that is larger than the runtime allows."""
    limits = runtime.limits
    most_gpus = 1 if limits.max_gpus_per_node is None else limits.max_gpus_per_node
    checks: tuple[tuple[str, int | str, int | str | None, str], ...] = (
        ("nodes", size.nodes, limits.max_nodes or 1, "maxNodes"),
        ("gpusPerNode", size.gpus, most_gpus, "maxGpusPerNode"),
        ("cpu", size.cpu, limits.max_cpu, "maxCpu"),
        ("memory", size.memory, limits.max_memory, "maxMemory"),
    )
    for field, value, limit, key in checks:
        if limit is not None and amount(value) > amount(limit):
            return Refusal(
                Reason.LIMIT_EXCEEDED,
                f"resources.{field} is {value}, and FineTuneRuntime {name} allows at most {limit} (spec.limits.{key})",
            )
    return None


def deadline_refused(job: FineTuneJob, name: str, runtime: RuntimeSpec) -> Refusal | None:
    """The refusal of a job that wants to run longer than the runtime allows."""
    given, most = job.spec.active_deadline_seconds, runtime.limits.max_active_deadline_seconds
    if given is None or most is None or given <= most:
        return None
    allows = f"FineTuneRuntime {name} allows at most {most} (spec.limits.maxActiveDeadlineSeconds)"
    return Refusal(Reason.LIMIT_EXCEEDED, f"activeDeadlineSeconds is {given}, and {allows}")


def model_limits_refused(
    job: FineTuneJob, values: ResolvedValues, entry: RuntimeModel | None, runtime: str
) -> Refusal | None:
    """The refusal of a job outside its model's limits; `values` are its absent values, resolved."""
    if entry is None:
        return None
    kind = job.spec.training_type.type
    if entry.limits.of_kind(kind).supported is False:
        message = f"trainingType is {kind.value}, which FineTuneRuntime {runtime} does not support for {entry.name}"
        return Refusal(Reason.LIMIT_EXCEEDED, message)
    if job.spec.train_vision and entry.limits.supports_vision is False:
        message = f"trainVision is true, which FineTuneRuntime {runtime} does not support for {entry.name}: set it to"
        return Refusal(Reason.LIMIT_EXCEEDED, f"{message} false, or choose a multimodal model")
    for field, value, low, high in _bounded(job, values, entry.limits):
        if value is not None and ((low is not None and value < low) or (high is not None and value > high)):
            allowed = " and ".join(
                f"{word} {bound:g}" for word, bound in (("at least", low), ("at most", high)) if bound is not None
            )
            message = f"{field} is {value:g}, and FineTuneRuntime {runtime} allows {allowed} for {entry.name}"
            return Refusal(Reason.LIMIT_EXCEEDED, message)
    return _modules_refused(values, entry, runtime)


def _modules_refused(values: ResolvedValues, entry: RuntimeModel, runtime: str) -> Refusal | None:
    """The refusal of an adapter on layers that may not have one."""
    targets = entry.limits.lora.target_modules
    beyond = sorted(set(values.lora.trainable_modules) - set(targets)) if targets and values.lora else []
    if not beyond:
        return None
    message = (
        f"lora.trainableModules has {', '.join(beyond)}, and FineTuneRuntime {runtime} allows"
        f" {', '.join(targets)} for {entry.name}"
    )
    return Refusal(Reason.LIMIT_EXCEEDED, message)


def _bounded(
    job: FineTuneJob, values: ResolvedValues, limits: ModelLimits
) -> Iterator[tuple[str, int | float | None, Bound, Bound]]:
    """(field, value, lowest, highest) of everything that a model bounds."""
    spec, hyper = job.spec, job.spec.hyperparameters
    method: MethodType = spec.training_method.type
    kind: TrainingKind = spec.training_type.type
    of_kind = limits.of_kind(kind)
    if isinstance(of_kind, LoraLimits) and values.lora is not None:
        yield "lora.rank", values.lora.rank, None, of_kind.max_rank
    yield "batchSize", values.batch_size, of_kind.min_batch_size, of_kind.max_batch(method)
    yield "maxSeqLength", values.max_seq_length, limits.min_seq_length, limits.max_seq_length(method)
    yield "nEpochs", hyper.n_epochs, None, limits.max_epochs
    yield "nEvals", spec.evaluation.n_evals, None, limits.max_evals
    yield "nCheckpoints", spec.checkpointing.n_checkpoints, None, limits.max_checkpoints
    yield "learningRate", hyper.learning_rate, limits.min_learning_rate, limits.max_learning_rate
