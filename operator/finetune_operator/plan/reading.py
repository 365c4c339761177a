"""A pod's words, read as those of a stranger: the schema to the letter, plain text, weights where they may lie."""

from __future__ import annotations

import re
from typing import Any

from pydantic_core import InitErrorDetails, PydanticCustomError, ValidationError

from finetune_api.report import Report
from finetune_api.uris import OUTPUT_PATTERN
from finetune_api.words import plain


def read_report(body: str | bytes) -> Report:
    """The report in `body`, all its texts plain.

    Raises:
        pydantic.ValidationError: it is none, or names results where no job can write.
    """
    report = Report.model_validate_json(body)
    if elsewhere := [uri for uri in _results(report) if not re.fullmatch(OUTPUT_PATTERN, uri)]:
        error = PydanticCustomError("uri", "results cannot lie at {uri}", {"uri": plain(elsewhere[0])})
        raise ValidationError.from_exception_data(
            "Report", [InitErrorDetails(type=error, loc=("checkpoints",), input=None)]
        )
    said = report.model_dump(by_alias=False)
    cleaned = _plain(said)
    return report if cleaned == said else Report.model_validate(cleaned)


def _results(report: Report) -> list[str]:
    """Every URI that others may read from because of this report."""
    output = report.output
    places = [output.adapter_uri, output.model_uri, output.merged_uri, output.report_uri] if output else []
    places += [report.tracking.tensorboard_uri] if report.tracking else []
    return [*(checkpoint.uri for checkpoint in report.checkpoints), *(uri for uri in places if uri)]


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return plain(value)
    if isinstance(value, dict):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return tuple(_plain(item) for item in value)
    return value
