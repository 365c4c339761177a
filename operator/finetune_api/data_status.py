"""What a FineTuneJob reports of its data: rows, tokens, and the first bad rows without their content."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StringConstraints

from finetune_api.base import ApiModel, Integer, Text

MAX_DATA_ERRORS = 20
MAX_WARNINGS = 20


class DataError(ApiModel):
    """A bad row. The message never quotes the row's content."""

    line: Integer
    """Line in the file, from 1."""
    file: Annotated[str, StringConstraints(max_length=32)] = "trainingFile"
    """trainingFile or validationFile."""
    field: Annotated[str, StringConstraints(max_length=128)]
    """Path of the field in the row; empty for the row as a whole."""
    code: Annotated[str, StringConstraints(max_length=64)]
    """Kind of error."""
    message: Annotated[str, StringConstraints(max_length=512)] = ""
    """What is wrong and what to do."""


class TokenStatistics(ApiModel):
    """Lengths of one side of the rows, in tokens."""

    p50: Integer
    """Median."""
    p95: Integer
    """95th percentile."""
    max: Integer
    """Longest."""


class DataStatus(ApiModel):
    """What the prepare step found in the data."""

    format: Annotated[str, StringConstraints(max_length=32)] | None = None
    """preference, conversation, instruction or text."""
    rows: Integer = 0
    """Rows read from the training file."""
    pairs: Integer | None = None
    """Preference pairs used for training."""
    validation_rows: Integer | None = None
    """Rows used for evaluation."""
    tokens: Annotated[dict[Annotated[str, StringConstraints(max_length=64)], TokenStatistics], Field(max_length=8)] = (
        Field(default_factory=dict)
    )
    """Token statistics per side: prompt, preferred, nonPreferred; or sequence."""
    total_tokens: Integer | None = None
    """Tokens of one epoch."""
    images: Integer | None = None
    """Images of one epoch; absent where there are none."""
    max_tokens: Integer | None = None
    """Longest sequence; of a pair, the longer side with its prompt."""
    dropped: Integer = 0
    """Rows left out because they are longer than maxSeqLength."""
    truncated: Integer = 0
    """Rows cut or split to fit maxSeqLength."""
    duplicates: Integer = 0
    """Rows that repeat an earlier one."""
    weightless: Integer = 0
    """Rows left out because they weigh 0 or hold nothing to train on."""
    warnings: Annotated[tuple[Text, ...], Field(max_length=MAX_WARNINGS)] = ()
    """What is odd but no error."""
    errors: Annotated[tuple[DataError, ...], Field(max_length=MAX_DATA_ERRORS)] = ()
    """The first errors; all of them are in data-report.json."""
    error_count: Integer = 0
    """Number of errors found; a bad row has at least one."""
    report_uri: Text | None = None
    """The whole report."""
