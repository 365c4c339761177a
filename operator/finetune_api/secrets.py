"""How a job names a value of a Secret. Who may name which, the runtime's access.secrets says."""

from __future__ import annotations

from typing import Annotated

from finetune_api.base import ApiModel, Matching
from finetune_api.uris import DNS_NAME

SecretName = Annotated[
    str, Matching("name must be the name of a Secret in the job's namespace", rf"^{DNS_NAME}$", max_length=253)
]
SecretKeyName = Annotated[
    str, Matching("key must be a key of a Secret: letters, digits, '.', '-' and '_'", r"^[-._a-zA-Z0-9]+$", 253)
]


class SecretKeyRef(ApiModel):
    """One value of a Secret in the job's namespace."""

    name: SecretName
    """Name of the Secret, which must match the runtime's access.secrets."""
    key: SecretKeyName
    """Which of its values."""
