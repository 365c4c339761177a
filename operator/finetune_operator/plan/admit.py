"""The look that starts a job, or says why it cannot start yet. It writes status and nothing else.

From the moment that startTime stands, the API server refuses changes of the spec, and every later look works from
what was frozen here: children are only ever made from a spec and a runtime that nobody can exchange meanwhile.
"""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime

from finetune_api import names
from finetune_api.job import FineTuneJob
from finetune_api.runtime import RuntimeSpec
from finetune_api.status import Condition, ConditionType, JobStatus, Reason, Resolved, ResolvedRuntime
from finetune_operator.plan import queueing
from finetune_operator.plan.conditions import Say, no_more_suspended, phase_of, transitions, updated
from finetune_operator.plan.references import Permitted, missing, permit
from finetune_operator.plan.state import Event, Observed, Plan, Refusal, timestamp
from finetune_operator.settings import Settings

MAX_RUNTIME_BYTES = 32 * 1024
LOOKED_FOR = frozenset(
    {Reason.CLAIM_NOT_FOUND, Reason.ACCESS_MODE, Reason.CONFIG_MAP_NOT_FOUND, Reason.SERVICE_ACCOUNT_NOT_FOUND}
)
"""Refusals that end when an object appears that the operator may not watch."""
WAITS = "waits until the job is accepted"
SUSPENDED = "suspended before it started; set spec.suspend to false to start it"


def admit(job: FineTuneJob, observed: Observed, settings: Settings, now: datetime) -> Plan:
    """Start `job`, say what is missing, or only that nothing is: for one that is suspended."""
    permitted = permit(job, observed)
    if isinstance(permitted, Refusal):
        return refused(job, permitted, settings, now)
    frozen = frozen_runtime(permitted)
    lacking = queueing.refusal(job, settings) or missing(job, permitted, observed, settings)
    refusal = lacking or _too_large(frozen)
    if refusal is not None:
        return refused(job, refusal, settings, now)
    if job.spec.suspend:
        return _suspended(job, frozen, now)
    return _started(job, permitted, frozen, now)


def refused(job: FineTuneJob, refusal: Refusal, settings: Settings, now: datetime) -> Plan:
    """Accepted=False: never final, looked at again when something changes."""
    says = [
        Say(ConditionType.ACCEPTED, False, refusal.message, refusal.reason),
        Say(ConditionType.DATA_READY, False, WAITS, Reason.PENDING),
        Say(ConditionType.RUNNING, False, WAITS, Reason.PENDING),
        Say(ConditionType.PUBLISHED, False, WAITS, Reason.PENDING),
        *_suspension(job),
    ]
    old = job.status or JobStatus()
    again = settings.poll_period_seconds if refusal.reason in LOOKED_FOR else None
    return with_says(job, old, old, says, now, Plan(status=old, look_again_after=again))


def _suspended(job: FineTuneJob, frozen: ResolvedRuntime, now: datetime) -> Plan:
    """Accepted and not started: the spec may still be changed, and nothing is frozen."""
    says = [
        Say(ConditionType.ACCEPTED, True, f"can run on FineTuneRuntime {frozen.name}"),
        Say(ConditionType.DATA_READY, False, SUSPENDED, Reason.SUSPENDED),
        Say(ConditionType.RUNNING, False, SUSPENDED, Reason.SUSPENDED),
        Say(ConditionType.PUBLISHED, False, "follows the training", Reason.PENDING),
        *_suspension(job),
    ]
    old = job.status or JobStatus()
    return with_says(job, old, old, says, now, Plan(status=old))


def _suspension(job: FineTuneJob) -> list[Say]:
    """What the condition Suspended says of a job that has not started."""
    if job.spec.suspend:
        return [Say(ConditionType.SUSPENDED, True, SUSPENDED, Reason.USER_REQUESTED)]
    return no_more_suspended(job.status or JobStatus(), ())


def with_says(
    job: FineTuneJob, old: JobStatus, new: JobStatus, says: list[Say], now: datetime, plan: Plan, *more: Event
) -> Plan:
    """`plan` with the status `new`, its conditions as `says`, and the events of the change from `old`."""
    moment, generation = timestamp(now), job.metadata.generation
    conditions: tuple[Condition, ...] = updated(new.conditions, says, moment, generation)
    status = new.model_copy(
        update={
            "conditions": conditions,
            "observed_generation": generation,
            "id": names.job_id(job.metadata.uid or ""),
        }
    )
    status = status.model_copy(update={"phase": phase_of(status)})
    return replace(plan, status=status, events=(*more, *transitions(old, status, [event.reason for event in more])))


def frozen_runtime(permitted: Permitted) -> ResolvedRuntime:
    """The runtime as it is now, with only the chosen model's entry."""
    entry = permitted.weights.entry
    spec = permitted.runtime.spec.model_copy(update={"models": (entry,) if entry else ()})
    metadata = permitted.runtime.metadata
    return ResolvedRuntime(name=metadata.name, generation=metadata.generation or 0, spec=spec.to_json())


def runtime_of(resolved: Resolved) -> RuntimeSpec:
    """The frozen runtime of a started job."""
    return RuntimeSpec.model_validate(resolved.runtime.spec if resolved.runtime else {})


def _too_large(frozen: ResolvedRuntime) -> Refusal | None:
    size = len(json.dumps(frozen.spec).encode())
    if size <= MAX_RUNTIME_BYTES:
        return None
    message = f"FineTuneRuntime {frozen.name} has {size} bytes, at most {MAX_RUNTIME_BYTES} can be kept: shorten it"
    return Refusal(Reason.LIMIT_EXCEEDED, message)


def _started(job: FineTuneJob, permitted: Permitted, frozen: ResolvedRuntime, now: datetime) -> Plan:
    weights, values, lora = permitted.weights, permitted.values, permitted.values.lora
    old = job.status or JobStatus()
    resolved = Resolved(
        runtime=frozen,
        model=weights.model,
        batch_size=values.batch_size,
        lora_rank=lora.rank if lora else None,
        lora_alpha=lora.alpha if lora else None,
        trainable_modules=lora.trainable_modules if lora else (),
        max_seq_length=values.max_seq_length,
    )
    uid, namespace = job.metadata.uid or "", job.metadata.namespace or ""
    status = old.model_copy(
        update={
            "start_time": timestamp(now),
            "resolved": resolved,
            "output_name": names.output_name(namespace, weights.named, job.spec.suffix, uid),
        }
    )
    says = [
        Say(ConditionType.ACCEPTED, True, f"runs on FineTuneRuntime {frozen.name}"),
        Say(ConditionType.DATA_READY, False, "the prepare Job is made next", Reason.PENDING),
        Say(ConditionType.RUNNING, False, "waits for the data", Reason.PENDING),
        Say(ConditionType.PUBLISHED, False, "follows the training", Reason.PENDING),
        *_suspension(job),
    ]
    return with_says(job, old, status, says, now, Plan(status=status, look_again_after=0.0))
