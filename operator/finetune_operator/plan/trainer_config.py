"""The TrainerConfig of a started job: built from its spec and from what the first look froze in status.resolved."""

from __future__ import annotations

from finetune_api.job import FineTuneJob
from finetune_api.method import TrainingKind
from finetune_api.resolve import Place, configure, resolve, same_as
from finetune_api.runtime import RuntimeSpec
from finetune_api.status import Resolved, ResolvedModel
from finetune_api.trainer import JobIdentity, Start, TrainerConfig
from finetune_operator.plan.access import expanded
from finetune_operator.plan.size import output_uri, size_of
from finetune_operator.plan.volumes import mounts_of
from finetune_operator.plan.weights import adapter_of


def trainer_config(job: FineTuneJob, runtime: RuntimeSpec, resolved: Resolved, output_name: str) -> TrainerConfig:
    """The configuration of every pod of `job`, for preparing and for training alike.

    Args:
        runtime: the frozen one, with the chosen model's entry alone.
        resolved: what the first look wrote; the model and, for LoRA, the adapter are set.
    """
    spec = job.spec
    entry = runtime.models[0] if runtime.models else None
    start = start_of(resolved.model or ResolvedModel(source=""), same_as(spec, entry))
    target = output_uri(job, runtime) or ""
    continued = start.adapter is not None and spec.training_type.type is TrainingKind.LORA
    size = size_of(job, runtime)
    values = resolve(spec, entry, adapter_of(resolved) if continued else None)
    place = Place(
        job=JobIdentity(namespace=job.metadata.namespace or "", name=job.metadata.name, uid=job.metadata.uid or ""),
        start=start,
        output_uri=target,
        output_name=output_name,
        gpus=size.gpus,
        nodes=size.nodes,
        offline=runtime.offline,
        mounts=mounts_of(
            *(start.model, start.same_as, start.adapter),
            *(spec.training_file, spec.validation_file, target),
            runtime.cache.uri if runtime.cache else None,
        ),
        allow_remote_code=runtime.allow_remote_code,
        https_hosts=_https_hosts(job, runtime),
        shared_cache=runtime.cache is not None,
        gpu_memory=runtime.gpu_memory,
        price_per_million_tokens=entry.price_per_million_tokens if entry else None,
    )
    return configure(spec, values, place)


def _https_hosts(job: FineTuneJob, runtime: RuntimeSpec) -> tuple[str, ...]:
    """The hosts that the trainer holds redirects to; none for a job without https."""
    files = (job.spec.training_file, job.spec.validation_file or "")
    if not any(file.startswith("https://") for file in files):
        return ()
    return expanded(runtime.access.https_hosts, job.metadata.namespace or "")


def start_of(model: ResolvedModel, base: str | None = None) -> Start:
    """Starting weights: a checkpoint that is not itself the source is an adapter on top of it.

    Args:
        base: URI of the model whose architecture they must have.
    """
    pinned = f"{model.source}@{model.revision}" if model.revision and model.source.startswith("hf://") else model.source
    adapter = model.checkpoint if model.checkpoint != model.source else None
    return Start(model=pinned, adapter=adapter, same_as=base, sha256=model.checkpoint_sha256)
