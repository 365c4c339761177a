"""A stored job that the models refuse: the API server let it through, so its status must say what is wrong."""

from __future__ import annotations

from datetime import datetime

from pydantic import ValidationError

from finetune_api import names
from finetune_api.job import FineTuneJob, JobSpec, ObjectMeta
from finetune_api.status import ConditionType, JobStatus, Reason
from finetune_operator.plan.admit import refused, runtime_of, with_says
from finetune_operator.plan.conditions import Say
from finetune_operator.plan.state import Manifest, Plan, Refusal
from finetune_operator.settings import Settings

MAX_SENTENCES = 5
STARTED = (
    "the job started before this operator came, which follows it no further: set spec.cancel to true, or delete it,"
    " and create a new FineTuneJob"
)


def sentences(error: ValidationError) -> str:
    """The first few things that are wrong: field and reason, never the value."""
    told = [f"{'.'.join(str(step) for step in e['loc']) or 'object'}: {e['msg']}" for e in error.errors()]
    more = f"; and {len(told) - MAX_SENTENCES} more" if len(told) > MAX_SENTENCES else ""
    return "; ".join(told[:MAX_SENTENCES]) + more


def invalid_job(manifest: Manifest, error: ValidationError, settings: Settings, now: datetime) -> Plan:
    """Accepted=False/InvalidSpec for a job that cannot be read; of one that has started, all else stays said."""
    job = shell(manifest)
    status = job.status or JobStatus()
    if status.start_time is not None:
        says = [Say(ConditionType.ACCEPTED, False, f"{sentences(error)}; {STARTED}", Reason.INVALID_SPEC)]
        return with_says(job, status, status, says, now, Plan(status=status))
    return refused(job, Refusal(Reason.INVALID_SPEC, sentences(error)), settings, now)


def unreadable_status(manifest: Manifest) -> str | None:
    """Why the stored status cannot be gone on from: another version wrote it. It must not be written over then.

    A status is written whole, so what is not understood would be lost: that the job has started, or ended.
    """
    try:
        resolved = JobStatus.model_validate(manifest.get("status") or {}).resolved
        if resolved is not None:
            runtime_of(resolved)
    except ValidationError as error:
        return sentences(error)
    return None


def shell(manifest: Manifest) -> FineTuneJob:
    """The job with its metadata and as much of its status as can be read; of its spec only what ends a job."""
    try:
        status = JobStatus.model_validate(manifest.get("status") or {})
    except ValidationError:
        status = JobStatus()
    spec = manifest.get("spec") or {}
    ttl = spec.get("ttlSecondsAfterFinished")
    return FineTuneJob.model_construct(
        api_version=names.API_VERSION,
        kind=names.JOB_KIND,
        metadata=ObjectMeta.model_validate(manifest["metadata"]),
        spec=JobSpec.model_construct(
            training_file="",
            suspend=spec.get("suspend") is True,
            cancel=spec.get("cancel") is True,
            ttl_seconds_after_finished=ttl if type(ttl) is int else None,
        ),
        status=status,
    )


def only_ends(job: FineTuneJob) -> bool:
    """Whether all that is left to do is to stop the job, or to delete its record: its shell is enough for that."""
    return job.spec.cancel or (job.status is not None and job.status.is_final)
