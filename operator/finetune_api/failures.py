"""Why a run ends without success: codes and values that are sent, exit codes, and the sentences that people read."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import Field, StringConstraints

from finetune_api.base import ApiModel
from finetune_api.trainer import ExitCode


class FailureCode(StrEnum):
    """Why a run ended without success; each has an exit code and a sentence."""

    CONFIG_INVALID = "ConfigInvalid"
    CONFIG_UNREADABLE = "ConfigUnreadable"
    ADAPTER_MODULES_UNKNOWN = "AdapterModulesUnknown"
    ADAPTER_ON_HEAD = "AdapterOnHead"
    ADAPTER_IN_EXPERTS = "AdapterInExperts"
    SEQUENCE_TOO_LONG_FOR_MODEL = "SequenceTooLongForModel"
    NO_VISION_ENCODER = "NoVisionEncoder"
    NO_TRAINABLE_ROWS = "NoTrainableRows"
    METHOD_NEEDS_PREFERENCE = "MethodNeedsPreference"
    TEXT_WITHOUT_INPUTS = "TextWithoutInputs"
    DATA_INVALID = "DataInvalid"
    DATA_NOT_FOUND = "DataNotFound"
    DATA_REFUSED = "DataRefused"
    DATA_UNREACHABLE = "DataUnreachable"
    MODEL_NOT_FOUND = "ModelNotFound"
    MODEL_UNSUPPORTED = "ModelUnsupported"
    MODEL_UNREACHABLE = "ModelUnreachable"
    REMOTE_CODE = "RemoteCode"
    GPU_MISSING = "GpuMissing"
    OUT_OF_MEMORY = "OutOfMemory"
    SHARED_OUT_OF_MEMORY = "SharedOutOfMemory"
    MODEL_TOO_LARGE = "ModelTooLarge"
    GPU_SMALL_FOR_ROW = "GpuSmallForRow"
    GPU_SMALL_FOR_MODEL = "GpuSmallForModel"
    GPU_SMALL_FOR_FULL = "GpuSmallForFull"
    DIVERGED = "Diverged"
    NEVER_FINITE = "NeverFinite"
    CHECKPOINT_MISSING = "CheckpointMissing"
    CHECKPOINT_CHANGED = "CheckpointChanged"
    ADAPTER_UNSUPPORTED = "AdapterUnsupported"
    OUTPUT_NOT_WRITABLE = "OutputNotWritable"
    OUTPUT_TAKEN = "OutputTaken"
    HUB_NOT_WRITABLE = "HubNotWritable"
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
    FailureCode.NO_VISION_ENCODER: (
        ExitCode.BAD_CONFIG,
        "trainVision is true, but the model {uri} has no vision encoder that this version can train: set it to false,"
        " or choose a multimodal model (Qwen3-VL)",
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
    FailureCode.DATA_REFUSED: (ExitCode.BAD_CONFIG, "{field} is {uri}, which may not be read: {problem}"),
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
    FailureCode.SHARED_OUT_OF_MEMORY: (
        ExitCode.OUT_OF_MEMORY,
        "the memory of {device} ran out on a micro-batch of {tokens} tokens, and of {processes} processes that share"
        " the weights none can go on without another: lower maxSeqLength, or use more GPUs or more memory",
    ),
    FailureCode.MODEL_TOO_LARGE: (
        ExitCode.OUT_OF_MEMORY,
        "the model with its gradients and optimizer state does not fit into the memory of {device}: choose a smaller"
        " model, LoRA instead of full training, or more memory",
    ),
    FailureCode.GPU_SMALL_FOR_ROW: (
        ExitCode.OUT_OF_MEMORY,
        "the row of line {line} with {tokens} tokens needs about {needed} GiB of GPU memory at the least, the"
        " FineTuneRuntime's GPUs have {has} GiB (gpuMemory): lower maxSeqLength to {fits} or use larger GPUs",
    ),
    FailureCode.GPU_SMALL_FOR_MODEL: (
        ExitCode.OUT_OF_MEMORY,
        "the model with its adapter needs about {needed} GiB of GPU memory at the least, the FineTuneRuntime's GPUs"
        " have {has} GiB (gpuMemory): choose a smaller model or use larger GPUs",
    ),
    FailureCode.GPU_SMALL_FOR_FULL: (
        ExitCode.OUT_OF_MEMORY,
        "full fine-tuning needs about {needed} GiB of memory of each of {given} GPUs at the least, those of the"
        " FineTuneRuntime have {has} GiB (gpuMemory): train with LoRA, which needs about {lora} GiB, or spread it over"
        " {gpus} GPUs",
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
    FailureCode.HUB_NOT_WRITABLE: (
        ExitCode.PUBLISH_FAILED,
        "output.hfRepo is {repo}, which cannot be written: {problem}",
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
