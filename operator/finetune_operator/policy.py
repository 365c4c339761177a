"""What the chart's admission policies must know of the contract: labels, the user of the pods, fields with Secrets."""

from __future__ import annotations

import typing
from collections.abc import Iterator
from typing import Any

from finetune_api import names
from finetune_api.base import ApiModel
from finetune_api.job import JobSpec
from finetune_api.secrets import SecretKeyRef


def facts() -> dict[str, Any]:
    """The names that stand in the policies' expressions."""
    return {
        "group": names.GROUP,
        "kind": names.JOB_KIND,
        "plural": names.JOB_PLURAL,
        "managedByLabel": names.MANAGED_BY_LABEL,
        "managedBy": names.MANAGED_BY,
        "jobUidLabel": names.JOB_UID_LABEL,
        "userId": names.USER_ID,
        "secretFields": [list(path) for path in secret_fields(JobSpec)],
    }


def secret_fields(model: type[ApiModel], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """JSON paths of all fields that name a Secret."""
    for name, field in model.model_fields.items():
        step = (*path, field.alias or name)
        for kind in (field.annotation, *typing.get_args(field.annotation)):
            if kind is SecretKeyRef:
                yield step
            elif isinstance(kind, type) and issubclass(kind, ApiModel):
                yield from secret_fields(kind, step)
