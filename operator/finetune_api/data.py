"""The `data` block of a job: what is done with rows that are too long, repeated, or have columns of their own."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import Field, StringConstraints

from finetune_api.base import ApiModel

MAX_CHAT_TEMPLATE = 65536


class Overlong(StrEnum):
    """What becomes of rows longer than maxSeqLength."""

    DROP = "Drop"
    TRUNCATE = "Truncate"
    FAIL = "Fail"


class ExtraColumns(StrEnum):
    """What becomes of columns that the format does not have."""

    REJECT = "Reject"
    IGNORE = "Ignore"


class Duplicates(StrEnum):
    """What becomes of rows that repeat an earlier one."""

    WARN = "Warn"
    DROP = "Drop"


class DataOptions(ApiModel):
    """What is done with rows that could be trained on in more than one way."""

    overlong: Overlong = Overlong.DROP
    """Rows longer than maxSeqLength: Drop leaves them out; Truncate takes the oldest turns of a prompt, the trailing
    turns of a conversation, and splits `text`, and leaves out what still does not fit; Fail makes them errors. An
    answer is never cut. What was done is counted in status.data."""
    extra_columns: ExtraColumns = ExtraColumns.REJECT
    """Columns that the format does not have: Reject makes them errors, Ignore passes over them."""
    duplicates: Duplicates = Duplicates.WARN
    """Rows that repeat an earlier row of the same file: Warn counts them, Drop leaves them out as well."""
    chat_template: Annotated[str, StringConstraints(strict=True, min_length=1, max_length=MAX_CHAT_TEMPLATE)] | None = (
        Field(default=None)
    )
    """Jinja template that renders messages in place of the model's own; it runs in a sandbox and is published with the
    result. Needed where the model has none."""
