"""Where training starts: a model of the runtime's list, one from the Hub or a claim, or an earlier job's checkpoint."""

from __future__ import annotations

from dataclasses import dataclass

from finetune_api.job import FineTuneJob, JobSpec
from finetune_api.method import TrainingKind
from finetune_api.resolve import (
    BEST,
    checkpoint_named,
    inherited_conflict,
    revision_conflict,
    same_as,
    source_uri,
    starting_uri,
)
from finetune_api.runtime import RuntimeModel, RuntimeSpec
from finetune_api.status import Checkpoint, CheckpointType, ConditionType, JobStatus, Reason, Resolved, ResolvedModel
from finetune_api.trainer import LoraConfig
from finetune_operator.plan.access import Use
from finetune_operator.plan.state import Refusal

FIELD = "fromCheckpoint"


@dataclass(frozen=True, slots=True)
class Weights:
    """The starting weights of a job, and what must be allowed to use them."""

    model: ResolvedModel
    entry: RuntimeModel | None
    """The model's entry in the runtime's list, whose limits hold."""
    named: str
    """The model as the output is named after it."""
    uses: tuple[Use, ...]
    """URIs that need an entry in `access`; a model of the list needs none."""
    parent: LoraConfig | None = None
    """The adapter that a LoRA job continues."""
    same_as: str | None = None
    """URI of the model whose architecture the weights must have."""


def weights_of(job: FineTuneJob, name: str, runtime: RuntimeSpec, parent: FineTuneJob | None) -> Weights | Refusal:
    """The starting weights of `job` on runtime `name`."""
    if job.spec.from_checkpoint is not None:
        return _from_checkpoint(job, name, runtime, parent)
    return _from_model(job.spec, name, runtime)


def parent_name(job: FineTuneJob) -> str | None:
    """The job whose checkpoint `job` continues."""
    return job.spec.from_checkpoint.split(":", 1)[0] if job.spec.from_checkpoint else None


def _from_model(spec: JobSpec, name: str, runtime: RuntimeSpec) -> Weights | Refusal:
    model = spec.model or ""
    entry = runtime.model_named(model)
    if entry is None and runtime.models:
        known = ", ".join(m.name for m in runtime.models)
        return Refusal(
            Reason.MODEL_NOT_ALLOWED,
            f"model is {model}, which is not in the model list of FineTuneRuntime {name}: choose one of {known}",
        )
    if (conflict := revision_conflict(spec, entry)) is not None:
        return Refusal(Reason.INVALID_SPEC, conflict)
    uri, base = starting_uri(spec, entry), same_as(spec, entry)
    if uri is None:
        return Refusal(
            Reason.MODEL_NOT_ALLOWED,
            f"model is {model}, which FineTuneRuntime {name} does not list and which is no Hub id:"
            " write org/name or pvc://claim/path",
        )
    theirs = (Use("fromHfModel", uri),) if base else ()
    own = () if entry else (Use("model", base or uri),)
    return Weights(model=_resolved(uri), entry=entry, named=model, uses=(*own, *theirs), same_as=base)


def _from_checkpoint(
    job: FineTuneJob, name: str, runtime: RuntimeSpec, parent: FineTuneJob | None
) -> Weights | Refusal:
    given = job.spec.from_checkpoint or ""
    found = _checkpoint(given, parent, job.metadata.namespace or "")
    if isinstance(found, Refusal):
        return found
    checkpoint, resolved, kind = found
    base, entry = resolved.model or ResolvedModel(source=checkpoint.uri), _listed(runtime, resolved)
    if entry is None and runtime.models:
        return Refusal(
            Reason.MODEL_NOT_ALLOWED,
            f"{FIELD} is {given}, trained on {base.source}, which is not the source of any model in the list of"
            f" FineTuneRuntime {name}: use the runtime of that job, or add the model to the list",
        )
    own, named = Use(FIELD, checkpoint.uri), _model_part(parent) or base.source
    if kind is TrainingKind.FULL or resolved.model is None:
        model = ResolvedModel(source=checkpoint.uri, checkpoint=checkpoint.uri, checkpoint_sha256=checkpoint.sha256)
        return Weights(model=model, entry=entry, named=named, uses=(own,))
    model = base.model_copy(update={"checkpoint": checkpoint.uri, "checkpoint_sha256": checkpoint.sha256})
    listed = entry is not None and _resolved(source_uri(entry.source)).source == base.source
    uses = (own,) if listed else (own, Use(FIELD, base.source))
    lora = adapter_of(resolved) if job.spec.training_type.type is TrainingKind.LORA else None
    if lora is not None and (conflict := inherited_conflict(job.spec, lora)):
        return Refusal(Reason.INVALID_SPEC, conflict)
    return Weights(model=model, entry=entry, named=named, uses=uses, parent=lora)


def _checkpoint(
    given: str, parent: FineTuneJob | None, namespace: str
) -> tuple[Checkpoint, Resolved, TrainingKind] | Refusal:
    name, _, which = given.partition(":")
    if parent is None:
        message = f"{FIELD} is {given}, but there is no FineTuneJob {name} in namespace {namespace}: create it first"
        return Refusal(Reason.CHECKPOINT_NOT_FOUND, message)
    status = parent.status or JobStatus()
    found = checkpoint_named(which, status.checkpoints) if _settled(which, status) else None
    if found is not None and status.resolved is not None:
        return found, status.resolved, parent.spec.training_type.type
    return _not_published(given, which, parent, status)


def _settled(which: str, status: JobStatus) -> bool:
    """Whether it can be said which checkpoint that is: a better one may follow until the job has ended."""
    if which == BEST:
        return status.is_final
    return which != "" or status.is_true(ConditionType.COMPLETE)


def _not_published(given: str, which: str, parent: FineTuneJob, status: JobStatus) -> Refusal:
    name = parent.metadata.name
    there = ", ".join(str(c.step) for c in status.checkpoints if c.type is not CheckpointType.FINAL_MERGED) or "none"
    published = f"published steps: {there}"
    if which == BEST and parent.spec.evaluation.n_evals == 0:
        why = f"FineTuneJob {name} has no best checkpoint, because its evaluation.nEvals is 0: name a step"
        return Refusal(Reason.CHECKPOINT_NOT_FOUND, f"{FIELD} is {given}, but {why}; {published}")
    if which == BEST and not status.is_final:
        why = f"FineTuneJob {name} has not ended, so that a better one may follow; {published}"
        return Refusal(Reason.CHECKPOINT_NOT_READY, f"{FIELD} is {given}, and {why}")
    if not status.is_final:
        message = f"{FIELD} is {given}, and FineTuneJob {name} has not published it yet; {published}"
        return Refusal(Reason.CHECKPOINT_NOT_READY, message)
    what = {"": "final checkpoint", BEST: "best checkpoint"}.get(which, f"step {which}")
    message = f"{FIELD} is {given}, but FineTuneJob {name} ended without {what}; {published}"
    return Refusal(Reason.CHECKPOINT_NOT_FOUND if which else Reason.CHECKPOINT_NOT_READY, message)


def _model_part(parent: FineTuneJob | None) -> str | None:
    """The model in the name of `parent`'s output: of full weights the checkpoint's own path does not tell it."""
    name = parent.status.output_name if parent and parent.status else None
    if parent is None or name is None:
        return None
    without_uid = name.removesuffix(f"-{(parent.metadata.uid or '')[:8]}")
    return without_uid.removesuffix(f"-{parent.spec.suffix}").rsplit("/", 1)[-1]


def adapter_of(resolved: Resolved) -> LoraConfig | None:
    """The adapter that a job trained, as another inherits it; None after full training."""
    if resolved.lora_rank is None or resolved.lora_alpha is None:
        return None
    return LoraConfig(
        rank=resolved.lora_rank,
        alpha=resolved.lora_alpha,
        dropout=0.0,
        trainable_modules=resolved.trainable_modules,
    )


def _listed(runtime: RuntimeSpec, resolved: Resolved) -> RuntimeModel | None:
    """The entry of the weights that a checkpoint was trained on, or that those were trained on in their turn."""
    frozen = resolved.runtime.spec.get("models") if resolved.runtime else None
    origins = [str(model["source"]) for model in frozen] if isinstance(frozen, list) else []
    sources = {_resolved(source_uri(origin)).source for origin in origins}
    sources |= {resolved.model.source} if resolved.model else set()
    return next((m for m in runtime.models if _resolved(source_uri(m.source)).source in sources), None)


def _resolved(uri: str) -> ResolvedModel:
    """A model's URI and revision apart."""
    source, _, revision = uri.partition("@")
    return ResolvedModel(source=source, revision=revision or None)
