"""The Secrets of a job: which field names one, and the variable in which its pods get the value.

The operator never reads a Secret. A pod names it in its environment, not optionally, and the kubelet puts it in: so
preparing and training need the same Secrets, and a missing one shows before a GPU is taken.
"""

from __future__ import annotations

from dataclasses import dataclass

from finetune_api.job import FineTuneJob
from finetune_api.secrets import SecretKeyRef
from finetune_operator.plan.state import Manifest

HF_TOKEN = "HF_TOKEN"


@dataclass(frozen=True, slots=True)
class SecretUse:
    """A field of a job that names a Secret."""

    field: str
    variable: str
    ref: SecretKeyRef


def secrets_of(job: FineTuneJob) -> tuple[SecretUse, ...]:
    """Every Secret that `job` names."""
    token = job.spec.hf_token_secret_ref
    return (SecretUse("hfTokenSecretRef", HF_TOKEN, token),) if token else ()


def secret_environment(job: FineTuneJob) -> list[Manifest]:
    """The entries of a container's `env`."""
    return [
        {"name": use.variable, "valueFrom": {"secretKeyRef": {"name": use.ref.name, "key": use.ref.key}}}
        for use in secrets_of(job)
    ]
