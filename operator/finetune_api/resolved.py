"""What a job's names and absent values became: settled once, and read by every later look."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StringConstraints

from finetune_api.base import ApiModel, Integer, Name, Number, Text


class ResolvedRuntime(ApiModel):
    """The runtime as it was when the job started."""

    name: Name
    """Name of the FineTuneRuntime."""
    generation: Integer
    """Its generation then."""
    spec: Annotated[dict[str, object], Field(json_schema_extra={"x-kubernetes-preserve-unknown-fields": True})]
    """Its spec then, with only the chosen model's entry. Later edits of the runtime do not touch this job."""


class ResolvedModel(ApiModel):
    """The starting weights as resolved."""

    source: Text
    """Hub id or URI of the base weights."""
    revision: Annotated[str, StringConstraints(max_length=128)] | None = None
    """Commit on the Hub; of a folder in an object store the digest of the names, sizes and tags of its files."""
    parameters: Integer | None = None
    """Number of weights of the base model."""
    checkpoint: Text | None = None
    """URI of the checkpoint that the job continues."""
    checkpoint_sha256: Annotated[str, StringConstraints(max_length=64)] | None = None
    """Digest of that checkpoint's weights."""


class ResolvedFile(ApiModel):
    """A data file as read."""

    sha256: Annotated[str, StringConstraints(max_length=64)]
    """Digest of the file."""
    size_bytes: Integer
    """Its size."""
    revision: Annotated[str, StringConstraints(max_length=128)] | None = None
    """Commit on the Hub that it is of."""


ModuleNameText = Annotated[str, StringConstraints(max_length=128)]


class Resolved(ApiModel):
    """What names and absent values became."""

    runtime: ResolvedRuntime | None = None
    """The runtime, frozen when the job started."""
    model: ResolvedModel | None = None
    """The starting weights."""
    training_file: ResolvedFile | None = None
    """The training data."""
    validation_file: ResolvedFile | None = None
    """The validation data."""
    batch_size: Integer | None = None
    """Pairs or rows per optimiser step."""
    lora_rank: Integer | None = None
    """Rank of the adapter."""
    lora_alpha: Number | None = None
    """Its alpha; a job that continues the adapter inherits it."""
    trainable_modules: Annotated[tuple[ModuleNameText, ...], Field(max_length=64)] = ()
    """Names of the layers that have an adapter; inherited likewise."""
    max_seq_length: Integer | None = None
    """Longest sequence, in tokens."""
    total_steps: Integer | None = None
    """Optimiser steps of the whole job."""
