"""FineTuneJob: what a user wants trained. The docstring under each field is its documentation everywhere."""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field

from finetune_api import names
from finetune_api.base import (
    ApiModel,
    Flag,
    Integer,
    Matching,
    Name,
    Resource,
    Rule,
    TransitionRule,
    cel_string,
)
from finetune_api.data import DataOptions
from finetune_api.evaluation import METRIC_RULES, Evaluation
from finetune_api.hyperparameters import Hyperparameters
from finetune_api.method import TrainingKind, TrainingMethod, TrainingType
from finetune_api.names import JOB_NAME_PATTERN, ApiVersion
from finetune_api.output import Output
from finetune_api.resources import Resources
from finetune_api.secrets import SecretKeyRef
from finetune_api.status import JobStatus
from finetune_api.tracking import Tracking
from finetune_api.uris import DataUri, HubModel, HubRevision, ModelUri

MAX_CHECKPOINTS = 32
MAX_SECONDS = 315360000
"""Ten years."""


class Checkpointing(ApiModel):
    """What is kept on the way."""

    n_checkpoints: Annotated[Integer, Field(ge=1, le=MAX_CHECKPOINTS)] = 1
    """Published checkpoints, evenly spaced; the last is the final one. The one with the best evaluation is published
    too, wherever it lies."""
    recovery_period_seconds: Annotated[Integer, Field(ge=0, le=86400)] = 600
    """How often a state is saved from which training goes on exactly; 0 = after every step. Also saved on SIGTERM."""


Suffix = Annotated[
    str,
    Matching(
        "suffix must hold only a-z, 0-9, '.' and '-', begin and end with a letter or digit, and have at most 40"
        " characters",
        r"^[a-z0-9]([-a-z0-9.]{0,38}[a-z0-9])?$",
        max_length=40,
    ),
]
CheckpointName = Annotated[
    str,
    Matching(
        "fromCheckpoint must be JOB, JOB:STEP or JOB:best: the name of an earlier job and a step that it published",
        r"^[a-z]([-a-z0-9]{0,50}[a-z0-9])?(:([0-9]{1,9}|best))?$",
        max_length=63,
    ),
]


def on_hub(model: str | None) -> bool:
    """Whether `model` may be one of the Hub: a name without a scheme, or hf://."""
    return model is not None and ("://" not in model or model.startswith("hf://"))


ManagedBy = Annotated[
    str,
    Matching(
        f"managedBy must be a domain and a path, such as {names.OPERATOR}",
        r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[-A-Za-z0-9._/]+$",
        max_length=63,
    ),
]


class JobSpec(ApiModel):
    """What to train, on what, how, and where the result goes."""

    runtime: Name | None = None
    """FineTuneRuntime to run on. Absent = the one with spec.default true."""
    model: ModelUri | None = None
    """Starting weights: a name in the runtime's model list, a Hub id (org/name[@revision]) or a URI (hf://, pvc://, or
    a folder in an object store: s3://, gs://, az://). Exactly one of model and fromCheckpoint."""
    from_checkpoint: CheckpointName | None = None
    """Starting weights of an earlier job in this namespace: JOB (its final checkpoint), JOB:STEP, or JOB:best (the
    one with the best evaluation). A LoRA job that continues a LoRA job goes on with its adapter and inherits rank,
    alpha and modules."""
    from_hf_model: HubModel | None = None
    """Other weights of the same architecture and size as model, from the Hub: org/name[@revision]. Needs model, whose
    limits hold."""
    hf_model_revision: HubRevision | None = None
    """Branch, tag or commit of model, or of fromHfModel where that is set. What it stood for is in
    status.resolved.model.revision. Never together with @revision."""
    hf_token_secret_ref: SecretKeyRef | None = None
    """Token for private and gated repositories of the Hugging Face Hub; the pods get it as HF_TOKEN."""
    training_file: DataUri
    """Training rows, JSON Lines (also .gz, .zst) or Parquet: pvc://claim/path, configmap://name/key,
    hf://datasets/org/name[@revision]/path, s3://bucket/path, gs://bucket/path, az://container/path, or
    https://host/path without a query."""
    validation_file: DataUri | None = None
    """Validation rows, the same formats. Needed when evaluation.nEvals > 0."""
    data: DataOptions = DataOptions()
    """What is done with rows that are too long, repeated, or have columns of their own."""
    training_method: TrainingMethod = TrainingMethod()
    """The objective."""
    training_type: TrainingType = TrainingType()
    """Which weights move."""
    train_vision: Flag = False
    """True trains the vision encoder too, with its projection into the language model. Only for a multimodal model;
    its language model is trained either way."""
    hyperparameters: Hyperparameters = Hyperparameters()
    """The optimisation."""
    evaluation: Evaluation = Evaluation()
    """Evaluations on the validation file."""
    checkpointing: Checkpointing = Checkpointing()
    """What is kept on the way."""
    suffix: Suffix | None = None
    """Part of the output's name."""
    output: Output | None = None
    """Where the result goes."""
    tracking: Tracking = Tracking()
    """Where else the values of metrics.jsonl go: W&B, TensorBoard, MLflow."""
    resources: Resources | None = None
    """What a training pod asks for."""
    suspend: Flag = False
    """True saves the state, frees the pods and keeps the job; false again goes on from the saved state."""
    cancel: Flag = False
    """True saves the state, stops the job and keeps its record; it cannot be taken back. Condition Failed, reason
    Cancelled."""
    active_deadline_seconds: Annotated[Integer, Field(ge=1, le=MAX_SECONDS)] | None = None
    """How long the job's pods may run, all in all; waiting and suspended time is not counted. After it the state is
    saved and the job ends with DeadlineExceeded. Absent = the runtime's limit, if it has one."""
    start_timeout_seconds: Annotated[Integer, Field(ge=1, le=MAX_SECONDS)] = 3600
    """How long a pod may wait for its image, a node, a Secret or a quota before the job ends with StartTimeout. Begins
    anew with each pod; not counted while the job is queued or suspended."""
    backoff_limit: Annotated[Integer, Field(ge=0, le=100)] = 3
    """Retries after failures that are not the user's. Preemptions are free."""
    ttl_seconds_after_finished: Annotated[Integer, Field(ge=0, le=MAX_SECONDS)] | None = None
    """How long the job is kept after its end; then the operator deletes it, never its results. Absent = for ever. Not
    for jobs that a GitOps tool applies: it would create a deleted one again, which trains again."""
    managed_by: ManagedBy = names.OPERATOR
    """Who looks after the job. Another value makes this operator leave it alone altogether."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            message="You must specify either a model or a checkpoint to start from, not both",
            cel="!(has(self.model) && has(self.fromCheckpoint))",
            holds=lambda s: s.model is None or s.from_checkpoint is None,
        ),
        Rule(
            message="You must specify either a model or a checkpoint",
            cel="has(self.model) || has(self.fromCheckpoint)",
            holds=lambda s: s.model is not None or s.from_checkpoint is not None,
        ),
        Rule(
            message="You must specify either a Hugging Face Hub model or a previous checkpoint to start from, not both",
            cel="!(has(self.fromHfModel) && has(self.fromCheckpoint))",
            holds=lambda s: s.from_hf_model is None or s.from_checkpoint is None,
        ),
        Rule(
            message="You must specify the base model to fine-tune a model from the Hugging Face Hub",
            cel="!has(self.fromHfModel) || has(self.model)",
            holds=lambda s: s.from_hf_model is None or s.model is not None,
        ),
        Rule(
            message="hfModelRevision needs a model from the Hugging Face Hub",
            cel="!has(self.hfModelRevision) || has(self.fromHfModel)"
            " || (has(self.model) && (!self.model.contains('://') || self.model.startsWith('hf://')))",
            holds=lambda s: s.hf_model_revision is None or s.from_hf_model is not None or on_hub(s.model),
        ),
        Rule(
            message="hfModelRevision and @revision are both set",
            cel="!has(self.hfModelRevision) || !((has(self.model) && self.model.contains('@'))"
            " || (has(self.fromHfModel) && self.fromHfModel.contains('@')))",
            holds=lambda s: s.hf_model_revision is None or "@" not in f"{s.model or ''}{s.from_hf_model or ''}",
        ),
        Rule(
            message="nEvals needs a validationFile",
            cel="self.evaluation.nEvals == 0 || has(self.validationFile)",
            holds=lambda s: s.evaluation.n_evals == 0 or s.validation_file is not None,
        ),
        Rule(
            message="output.merge needs trainingType.type LoRA",
            cel="!has(self.output) || !has(self.output.merge) || !self.output.merge"
            " || self.trainingType.type == 'LoRA'",
            holds=lambda s: not s.merges or s.training_type.type is TrainingKind.LORA,
        ),
        Rule(
            message="output.hfRepo needs hfTokenSecretRef",
            cel="!has(self.output) || !has(self.output.hfRepo) || has(self.hfTokenSecretRef)",
            holds=lambda s: s.hf_repo is None or s.hf_token_secret_ref is not None,
        ),
        Rule(
            message="Early stopping needs a validationFile",
            cel="!has(self.evaluation.earlyStopping) || has(self.validationFile)",
            holds=lambda s: s.evaluation.early_stopping is None or s.validation_file is not None,
        ),
        *METRIC_RULES,
    )
    transition_rules: ClassVar[tuple[TransitionRule, ...]] = (
        TransitionRule(
            message="managedBy is immutable",
            cel="self.managedBy == oldSelf.managedBy",
            holds=lambda old, new: old.managed_by == new.managed_by,
        ),
        TransitionRule(
            message="cancel cannot be taken back",
            cel="!oldSelf.cancel || self.cancel",
            holds=lambda old, new: not old.cancel or new.cancel,
        ),
    )

    @property
    def merges(self) -> bool:
        """Whether the adapter is also published merged into its base."""
        return self.output is not None and bool(self.output.merge)

    @property
    def hf_repo(self) -> str | None:
        """The repository to which the final weights are pushed."""
        return self.output.hf_repo if self.output is not None else None


MUTABLE_FIELDS = frozenset({"suspend", "cancel", "active_deadline_seconds", "ttl_seconds_after_finished"})
"""Fields of the spec that may change once the job has started."""


def _unchanged_cel() -> str:
    fixed = [field.alias for name, field in JobSpec.model_fields.items() if name not in MUTABLE_FIELDS]
    same = (
        f"has(self.spec.{n}) == has(oldSelf.spec.{n}) && (!has(self.spec.{n}) || self.spec.{n} == oldSelf.spec.{n})"
        for n in fixed
    )
    return "!has(oldSelf.status) || !has(oldSelf.status.startTime) || (" + " && ".join(same) + ")"


def _unchanged(old: FineTuneJob, new: FineTuneJob) -> bool:
    fixed = {name for name in JobSpec.model_fields if name not in MUTABLE_FIELDS}
    started = old.status is not None and old.status.start_time is not None
    return not started or old.spec.model_dump(include=fixed) == new.spec.model_dump(include=fixed)


class ObjectMeta(ApiModel):
    """The few parts of Kubernetes metadata that the project reads; the rest passes by."""

    model_config = ConfigDict(extra="ignore")

    name: Name
    namespace: Name | None = None
    uid: Name | None = None
    generation: int | None = None
    resource_version: str | None = None
    deletion_timestamp: str | None = None
    creation_timestamp: str | None = None
    labels: dict[str, str] = Field(default_factory=dict)


NAME_RULE = Rule(
    message="metadata.name must begin with a letter, hold only a-z, 0-9 and '-', and have at most 52 characters"
    " (Job and Service names derive from it)",
    cel=f"self.metadata.name.matches({cel_string(JOB_NAME_PATTERN)})",
    holds=lambda job: re.fullmatch(JOB_NAME_PATTERN, job.metadata.name) is not None,
)


class FineTuneJob(Resource):
    """A fine-tuning job: data and model in, an adapter or model out, with its progress in status."""

    api_version: ApiVersion
    kind: Literal["FineTuneJob"]
    metadata: ObjectMeta
    spec: JobSpec
    """What to train, on what, how, and where the result goes."""
    status: JobStatus | None = None
    """What has become of it; written by the operator alone."""

    rules: ClassVar[tuple[Rule, ...]] = (NAME_RULE,)
    transition_rules: ClassVar[tuple[TransitionRule, ...]] = (
        TransitionRule(
            message="spec is immutable once the job has started: create a new FineTuneJob",
            cel=_unchanged_cel(),
            holds=_unchanged,
        ),
    )


def job_from(manifest: dict[str, Any], *, local: bool = False) -> FineTuneJob:
    """Parse a manifest; `local` also takes file:// URIs.

    Raises:
        pydantic.ValidationError: one entry per broken bound or rule, with its path.
    """
    return FineTuneJob.model_validate(manifest, context={"local": local}, by_alias=True, by_name=False)
