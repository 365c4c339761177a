"""The Secrets of a job: which field names one, and the variable in which its pods get the value.

The operator never reads a Secret. A pod names it in its environment, not optionally, and the kubelet puts it in: so
preparing and training need the same Secrets, and a missing one shows before a GPU is taken.
"""

from __future__ import annotations

from dataclasses import dataclass

from finetune_api.job import FineTuneJob
from finetune_api.secrets import SecretKeyRef
from finetune_api.tracking import SECRET_FIELDS, Tracker
from finetune_operator.plan.state import Manifest

HF_TOKEN, WANDB_API_KEY, MLFLOW_TOKEN = "HF_TOKEN", "WANDB_API_KEY", "MLFLOW_TRACKING_TOKEN"


@dataclass(frozen=True, slots=True)
class SecretUse:
    """A field of a job that names a Secret."""

    field: str
    variable: str
    ref: SecretKeyRef


def secrets_of(job: FineTuneJob) -> tuple[SecretUse, ...]:
    """Every Secret that `job` names."""
    spec, wandb, mlflow = job.spec, job.spec.tracking.wandb, job.spec.tracking.mlflow
    named = (
        ("hfTokenSecretRef", HF_TOKEN, spec.hf_token_secret_ref),
        (SECRET_FIELDS[Tracker.WANDB], WANDB_API_KEY, wandb.api_key_secret_ref if wandb else None),
        (SECRET_FIELDS[Tracker.MLFLOW], MLFLOW_TOKEN, mlflow.token_secret_ref if mlflow else None),
    )
    return tuple(SecretUse(field, variable, ref) for field, variable, ref in named if ref is not None)


def secret_environment(job: FineTuneJob) -> list[Manifest]:
    """The entries of a container's `env`."""
    return [
        {"name": use.variable, "valueFrom": {"secretKeyRef": {"name": use.ref.name, "key": use.ref.key}}}
        for use in secrets_of(job)
    ]
