"""What the trainer tells the operator: one Report, served while it runs and cut into its last word.

The trainer sends codes and numbers; the sentences that people read are rendered from the tables here, so that no
text from a row or an exception can reach a status.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from typing import Annotated, Any

from pydantic import Field, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from finetune_api.base import ApiModel, Integer, Name, Number
from finetune_api.evaluation import EvaluationMetric
from finetune_api.history import History
from finetune_api.status import (
    MAX_CHECKPOINTS,
    MAX_WARNINGS,
    Checkpoint,
    DataStatus,
    JobWarning,
    Metrics,
    OutputStatus,
    Progress,
    Recovery,
    Resolved,
)
from finetune_api.trainer import ExitCode, Stage


class DataErrorCode(StrEnum):
    """Kinds of bad rows."""

    UNKNOWN_FILE_KIND = "UnknownFileKind"
    DAMAGED_FILE = "DamagedFile"
    EMPTY_FILE = "EmptyFile"
    INVALID_UTF8 = "InvalidUtf8"
    INVALID_JSON = "InvalidJson"
    NOT_AN_OBJECT = "NotAnObject"
    UNKNOWN_FORMAT = "UnknownFormat"
    MIXED_FORMATS = "MixedFormats"
    NOT_PREFERENCE = "NotPreference"
    PRETOKENISED = "Pretokenised"
    EXTRA_COLUMN = "ExtraColumn"
    MISSING_FIELD = "MissingField"
    WRONG_TYPE = "WrongType"
    INVALID_WEIGHT = "InvalidWeight"
    UNSUPPORTED_CONTENT = "UnsupportedContent"
    EMPTY_MESSAGES = "EmptyMessages"
    INVALID_ROLE = "InvalidRole"
    LAST_MESSAGE_FROM_ASSISTANT = "LastMessageFromAssistant"
    NOT_ONE_ASSISTANT_MESSAGE = "NotOneAssistantMessage"
    NO_ASSISTANT_MESSAGE = "NoAssistantMessage"
    EMPTY_ANSWER = "EmptyAnswer"
    IDENTICAL_ANSWERS = "IdenticalAnswers"
    NO_CHAT_TEMPLATE = "NoChatTemplate"
    TEMPLATE_REFUSED = "TemplateRefused"
    BORDER_UNCLEAR = "BorderUnclear"
    EMPTY_PROMPT = "EmptyPrompt"
    NO_END_TOKEN = "NoEndToken"
    PROMPT_TOO_LONG = "PromptTooLong"
    ROW_TOO_LONG = "RowTooLong"
    TOKEN_OUT_OF_RANGE = "TokenOutOfRange"


DATA_SENTENCES: dict[DataErrorCode, str] = {
    DataErrorCode.UNKNOWN_FILE_KIND: "the file is neither JSON Lines (.jsonl, .gz, .zst) nor Parquet: convert it",
    DataErrorCode.DAMAGED_FILE: "the file is damaged or cut off here, so the rest cannot be read: write it again",
    DataErrorCode.EMPTY_FILE: "the file holds no rows: write at least one",
    DataErrorCode.INVALID_UTF8: "the line is not UTF-8: save the file as UTF-8",
    DataErrorCode.INVALID_JSON: "the line is not JSON: write one JSON object per line",
    DataErrorCode.NOT_AN_OBJECT: "the line is JSON but no object: write {...}",
    DataErrorCode.UNKNOWN_FORMAT: "the row has the columns of no known format: give input, preferred_output and"
    " non_preferred_output; prompt, chosen and rejected; messages; prompt and completion; or text",
    DataErrorCode.MIXED_FORMATS: "the row has another format than the first row: use one format per file",
    DataErrorCode.NOT_PREFERENCE: "DPO needs preference rows: two answers to the same prompt",
    DataErrorCode.PRETOKENISED: "the file holds token ids, which fit one tokenizer only: give the text itself",
    DataErrorCode.EXTRA_COLUMN: "the column is not part of the format: remove it, or set data.extraColumns to Ignore",
    DataErrorCode.MISSING_FIELD: "the field is missing: add it",
    DataErrorCode.WRONG_TYPE: "the field has the wrong type: see docs/data.md for the format",
    DataErrorCode.INVALID_WEIGHT: "a row's weight is a finite number of at least 0, a message's is the integer 0 or 1",
    DataErrorCode.UNSUPPORTED_CONTENT: "only parts of type text can be trained on: remove images, audio and the like",
    DataErrorCode.EMPTY_MESSAGES: "the list of messages is empty: give at least one message",
    DataErrorCode.INVALID_ROLE: "the role is none of system, user, assistant, tool",
    DataErrorCode.LAST_MESSAGE_FROM_ASSISTANT: "the last input message is from the assistant: move it to the outputs",
    DataErrorCode.NOT_ONE_ASSISTANT_MESSAGE: "the output must be a list of exactly one message from the assistant",
    DataErrorCode.NO_ASSISTANT_MESSAGE: "no message is from the assistant, so there is nothing to learn",
    DataErrorCode.EMPTY_ANSWER: "the answer is empty: remove the row or write an answer",
    DataErrorCode.IDENTICAL_ANSWERS: "preferred and non-preferred answer are the same: remove the row",
    DataErrorCode.NO_CHAT_TEMPLATE: "the model's tokenizer has no chat template, so messages cannot be rendered:"
    " set data.chatTemplate, or choose a chat model",
    DataErrorCode.TEMPLATE_REFUSED: "the chat template refuses the row: check order and roles of the messages",
    DataErrorCode.BORDER_UNCLEAR: "the chat template renders the prompt differently with an answer, so the answer's"
    " first token is unclear: use another model or template",
    DataErrorCode.EMPTY_PROMPT: "the prompt is empty and the tokenizer has no begin token to put in its place: write a"
    " prompt",
    DataErrorCode.NO_END_TOKEN: "the tokenizer has no end token, so an answer in plain text cannot end: give messages",
    DataErrorCode.PROMPT_TOO_LONG: "the prompt alone fills maxSeqLength: shorten it or raise maxSeqLength",
    DataErrorCode.ROW_TOO_LONG: "the row is longer than maxSeqLength: shorten it, raise maxSeqLength, or set"
    " data.overlong to Drop or Truncate",
    DataErrorCode.TOKEN_OUT_OF_RANGE: "the tokenizer made a token that the model does not know: model and tokenizer"
    " do not fit",
}


class DataWarningCode(StrEnum):
    """What is odd about a row that is no error."""

    DUPLICATE_ROW = "DuplicateRow"
    IN_TRAINING_FILE = "InTrainingFile"
    PROMPT_IN_TRAINING_FILE = "PromptInTrainingFile"
    TOO_LONG = "TooLong"
    PROMPT_TOO_LONG = "PromptTooLong"
    TRUNCATED = "Truncated"
    NOTHING_TO_TRAIN = "NothingToTrain"
    LAST_TURN_ONLY = "LastTurnOnly"
    CONTROL_TOKEN = "ControlToken"


DATA_WARNINGS: dict[DataWarningCode, str] = {
    DataWarningCode.DUPLICATE_ROW: "the row repeats an earlier one",
    DataWarningCode.IN_TRAINING_FILE: "the row is also in trainingFile: evaluation will look better than it is",
    DataWarningCode.PROMPT_IN_TRAINING_FILE: "the prompt is also in trainingFile",
    DataWarningCode.TOO_LONG: "the row is longer than maxSeqLength and is left out",
    DataWarningCode.PROMPT_TOO_LONG: "the prompt alone fills maxSeqLength, so the row is left out",
    DataWarningCode.TRUNCATED: "the row is longer than maxSeqLength and is cut",
    DataWarningCode.NOTHING_TO_TRAIN: "the row has weight 0 or no token to train on, and is left out",
    DataWarningCode.LAST_TURN_ONLY: "only the last answer is trained: the chat template renders earlier ones anew",
    DataWarningCode.CONTROL_TOKEN: "the text itself holds the tokenizer's begin or end token, which then stands twice:"
    " remove it",
}


class FailureCode(StrEnum):
    """Why a run ended without success; each has an exit code and a sentence."""

    CONFIG_INVALID = "ConfigInvalid"
    CONFIG_UNREADABLE = "ConfigUnreadable"
    ADAPTER_MODULES_UNKNOWN = "AdapterModulesUnknown"
    ADAPTER_ON_HEAD = "AdapterOnHead"
    ADAPTER_IN_EXPERTS = "AdapterInExperts"
    SEQUENCE_TOO_LONG_FOR_MODEL = "SequenceTooLongForModel"
    NO_TRAINABLE_ROWS = "NoTrainableRows"
    METHOD_NEEDS_PREFERENCE = "MethodNeedsPreference"
    TEXT_WITHOUT_INPUTS = "TextWithoutInputs"
    DATA_INVALID = "DataInvalid"
    DATA_NOT_FOUND = "DataNotFound"
    DATA_UNREACHABLE = "DataUnreachable"
    MODEL_NOT_FOUND = "ModelNotFound"
    MODEL_UNSUPPORTED = "ModelUnsupported"
    MODEL_UNREACHABLE = "ModelUnreachable"
    REMOTE_CODE = "RemoteCode"
    GPU_MISSING = "GpuMissing"
    OUT_OF_MEMORY = "OutOfMemory"
    MODEL_TOO_LARGE = "ModelTooLarge"
    DIVERGED = "Diverged"
    NEVER_FINITE = "NeverFinite"
    CHECKPOINT_MISSING = "CheckpointMissing"
    CHECKPOINT_CHANGED = "CheckpointChanged"
    ADAPTER_UNSUPPORTED = "AdapterUnsupported"
    OUTPUT_NOT_WRITABLE = "OutputNotWritable"
    OUTPUT_TAKEN = "OutputTaken"
    STORAGE_FULL = "StorageFull"
    MERGE_FAILED = "MergeFailed"
    STOPPED = "Stopped"


FAILURES: dict[FailureCode, tuple[ExitCode, str]] = {
    FailureCode.CONFIG_INVALID: (ExitCode.BAD_CONFIG, "the configuration is invalid at {field}: {problem}"),
    FailureCode.CONFIG_UNREADABLE: (
        ExitCode.BAD_CONFIG,
        "the trainer cannot read the operator's configuration ({field}: {problem}): use an image of the operator's own"
        " version in the FineTuneRuntime",
    ),
    FailureCode.ADAPTER_MODULES_UNKNOWN: (
        ExitCode.BAD_CONFIG,
        "lora.trainableModules names {module}, which the model does not have; its linear layers are {known}",
    ),
    FailureCode.ADAPTER_ON_HEAD: (
        ExitCode.BAD_CONFIG,
        "lora.trainableModules names {module}, the model's head, which cannot have an adapter in this version: choose"
        " from {known}",
    ),
    FailureCode.ADAPTER_IN_EXPERTS: (
        ExitCode.BAD_CONFIG,
        "lora.trainableModules names {module}, which stands for fused experts in this model; an adapter on them is not"
        " in this version: leave it out",
    ),
    FailureCode.SEQUENCE_TOO_LONG_FOR_MODEL: (
        ExitCode.BAD_CONFIG,
        "maxSeqLength is {value}, the model takes at most {limit}: lower it",
    ),
    FailureCode.NO_TRAINABLE_ROWS: (
        ExitCode.DATA_INVALID,
        "no row of {file} is left to train on: {dropped} are longer than maxSeqLength {limit}, {weightless} have"
        " weight 0 or nothing to train on",
    ),
    FailureCode.METHOD_NEEDS_PREFERENCE: (
        ExitCode.DATA_INVALID,
        "{file} has the format {format}, DPO needs preference rows: input, preferred_output, non_preferred_output",
    ),
    FailureCode.TEXT_WITHOUT_INPUTS: (
        ExitCode.BAD_CONFIG,
        "trainOnInputs is Never, but {file} has the format text, of which nothing else is to be trained: set Auto",
    ),
    FailureCode.DATA_INVALID: (
        ExitCode.DATA_INVALID,
        "{count} bad rows in {file}; the first: line {line}, {field}: {problem}",
    ),
    FailureCode.DATA_NOT_FOUND: (ExitCode.DATA_UNREACHABLE, "{uri} does not exist or may not be read: check {field}"),
    FailureCode.DATA_UNREACHABLE: (ExitCode.DATA_UNREACHABLE, "{uri} could not be read: {problem}"),
    FailureCode.MODEL_NOT_FOUND: (ExitCode.MODEL_UNAVAILABLE, "the model {uri} does not exist or may not be read"),
    FailureCode.MODEL_UNSUPPORTED: (ExitCode.MODEL_UNAVAILABLE, "the model {uri} cannot be trained: {problem}"),
    FailureCode.MODEL_UNREACHABLE: (ExitCode.MODEL_UNREACHABLE, "the model {uri} could not be fetched: {problem}"),
    FailureCode.REMOTE_CODE: (
        ExitCode.MODEL_UNAVAILABLE,
        "the model {uri} needs Python code of its own, and the FineTuneRuntime does not allow that: choose a model that"
        " transformers knows, or have its spec.allowRemoteCode set to true",
    ),
    FailureCode.GPU_MISSING: (ExitCode.BAD_CONFIG, "gpusPerNode is {value} but the pod sees {found} GPUs that do bf16"),
    FailureCode.OUT_OF_MEMORY: (
        ExitCode.OUT_OF_MEMORY,
        "the row of line {line} with {tokens} tokens does not fit into the memory of {device}, rows of up to {fits}"
        " tokens do: lower maxSeqLength to {fits} or use more memory",
    ),
    FailureCode.MODEL_TOO_LARGE: (
        ExitCode.OUT_OF_MEMORY,
        "the model with its gradients and optimizer state does not fit into the memory of {device}: choose a smaller"
        " model, LoRA instead of full training, or more memory",
    ),
    FailureCode.DIVERGED: (
        ExitCode.DIVERGED,
        "the gradients of {skipped} steps were not finite, the last at step {step}: lower learningRate (it is"
        " {learningRate}, try {advised}); the {norms} finite gradients before had norms of {typicalNorm} as a rule and"
        " {largestNorm} at most, with maxGradNorm {maxGradNorm}, under {objective}",
    ),
    FailureCode.NEVER_FINITE: (
        ExitCode.DIVERGED,
        "no gradient was finite from step 1 to {step}, so it is not learningRate: the starting weights are damaged, or"
        " do not compute in this precision; the last step held lines {lines} of trainingFile",
    ),
    FailureCode.CHECKPOINT_MISSING: (ExitCode.CHECKPOINT_INVALID, "the checkpoint {uri} does not exist any more"),
    FailureCode.CHECKPOINT_CHANGED: (
        ExitCode.CHECKPOINT_INVALID,
        "the checkpoint {uri} has another digest than when it was published",
    ),
    FailureCode.ADAPTER_UNSUPPORTED: (
        ExitCode.CHECKPOINT_INVALID,
        "the adapter {uri} cannot be continued: {problem}",
    ),
    FailureCode.OUTPUT_NOT_WRITABLE: (ExitCode.PUBLISH_FAILED, "{uri} cannot be written: {problem}"),
    FailureCode.OUTPUT_TAKEN: (
        ExitCode.PUBLISH_FAILED,
        "{uri} holds the output of another job: choose another output or suffix",
    ),
    FailureCode.MERGE_FAILED: (
        ExitCode.PUBLISH_FAILED,
        "the adapter is published, but it could not be merged into {model}: {problem}",
    ),
    FailureCode.STORAGE_FULL: (
        ExitCode.PUBLISH_FAILED,
        "no space is left at {uri}: make room there, or give it more (a claim, or a pod's temporary storage)",
    ),
    FailureCode.STOPPED: (ExitCode.STOPPED, "stopped on request after step {step}"),
}


class Failure(ApiModel):
    """A cause: its code and the values of its sentence."""

    code: FailureCode
    args: Annotated[dict[str, Annotated[str, StringConstraints(max_length=512)]], Field(max_length=16)] = Field(
        default_factory=dict
    )

    @property
    def exit_code(self) -> ExitCode:
        """The exit code of this cause."""
        return FAILURES[self.code][0]

    @property
    def sentence(self) -> str:
        """The cause in words; a value that was not sent stays as its name in braces."""
        return FAILURES[self.code][1].format_map(_Given(self.args))


class _Given(dict[str, str]):
    def __missing__(self, key: str) -> str:
        return "{" + key + "}"


class WarningCode(StrEnum):
    """Kinds of warnings that a run may give."""

    RECOVERY_SKIPPED = "RecoverySkipped"
    """A recovery state was damaged or of another plan; training went on from an older one."""
    MERGE_LOSSY = "MergeLossy"
    """Casting the merged weights to the precision of the base lost much of what was learned."""
    LAST_TURN_ONLY = "LastTurnOnly"
    """Of some conversations only the last answer is trained, as the chat template renders earlier ones anew."""
    STEP_SKIPPED = "StepSkipped"
    """A step changed nothing because its gradient was not finite."""
    FEW_STEPS = "FewSteps"
    """The run has fewer than 50 optimiser steps."""
    CHOSEN_LOGPS_FALLING = "ChosenLogpsFalling"
    """The preferred answers became less likely while the margin grew."""
    TOO_EASY = "TooEasy"
    """Nearly every pair was right before a tenth of the run."""
    NO_LEARNING = "NoLearning"
    """After a third of the run the margin cannot be told from 0."""
    RESUME_REPLANNED = "ResumeReplanned"
    """Micro-batches as they were planned before a restart do not fit any more; they are smaller or slower now."""
    MICRO_BATCH_HALVED = "MicroBatchHalved"
    """Memory ran out in a step, which was done again with smaller micro-batches, and so are all that follow."""
    BETA_LOW = "BetaLow"
    """The loss compares answers per token, and beta is what plain DPO takes."""
    GAMMA_DOMINATES = "GammaDominates"
    """SimPO's margin outweighs what beta makes of a difference per token."""
    SHARED_PREFIX_OFF = "SharedPrefixOff"
    """The model's attention cannot share a pair's prompt, or pack rows, so training is slower; says why."""


class EarlyStop(ApiModel):
    """Training ended before its last step, because the evaluations had stopped improving."""

    metric: EvaluationMetric
    """What was watched."""
    step: Integer
    """The last step that was trained."""
    evaluations: Integer
    """Evaluations in a row without improvement."""
    best_step: Integer
    """Step of the best evaluation; 0 where no evaluation had a finite value."""
    best_value: Number | None = None
    """The metric's value there."""


class Report(ApiModel):
    """The state of a run: the body of GET /progress, and, cut to fit, the termination message."""

    job_uid: Name
    """Whose run this is; the operator drops an answer with another."""
    pod_uid: Name | None = None
    """Which pod says it."""
    stage: Stage
    """Prepare or Train."""
    finished: bool = False
    """True in the last word."""
    failure: Failure | None = None
    """Why the run ended, when it did not end well."""
    publishing: bool = False
    """True once training has ended and results are being published."""
    early_stop: EarlyStop | None = None
    """Why training ended before its last step (Train)."""
    resumed_from_step: Integer | None = None
    """Step of the recovery state that this run went on from; 0 = from the start."""
    progress: Progress | None = None
    """How far training is (Train)."""
    metrics: Metrics | None = None
    """The latest values (Train)."""
    history: History | None = None
    """The course of what this process has trained (Train)."""
    checkpoints: Annotated[tuple[Checkpoint, ...], Field(max_length=MAX_CHECKPOINTS)] = ()
    """Published checkpoints, oldest first (Train)."""
    recovery: Recovery | None = None
    """The newest resumable state (Train)."""
    warnings: Annotated[tuple[JobWarning, ...], Field(max_length=MAX_WARNINGS)] = ()
    """What a person should know."""
    data: DataStatus | None = None
    """What was found in the data (Prepare)."""
    resolved: Resolved | None = None
    """What absent values became (Prepare)."""
    output: OutputStatus | None = None
    """Where the results lie (Train, at the end)."""

    @model_validator(mode="before")
    @classmethod
    def _integers_fit(cls, data: object) -> object:
        """The API server holds no integer beyond 64 bits: with one in it, no status could ever be written again."""
        if any(not -(2**63) <= number < 2**63 for number in _integers(data)):
            raise PydanticCustomError("integer", "every integer must fit 64 bits")
        return data

    def to_json(self) -> dict[str, Any]:
        """The JSON form on the wire, without default values: an older operator reads all but what is new."""
        return self.model_dump(mode="json", exclude_none=True, exclude_defaults=True)


def _integers(value: object) -> Iterator[int]:
    if isinstance(value, int):
        yield value
    elif isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _integers(item)
