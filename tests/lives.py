"""Steps in the life of a job, for tests of the plan: one look follows another on what the one before has stored."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from builders import (
    NOW,
    NOW_TEXT,
    before_start,
    conditions,
    make_child,
    make_job,
    make_pod,
)
from finetune_api.job import FineTuneJob
from finetune_api.status import (
    ConditionType,
)
from finetune_api.trainer import Stage
from finetune_operator.plan.decide import decide
from finetune_operator.plan.state import ChildJob, Heard, Observed, Plan, Pod
from finetune_operator.settings import Settings

SETTINGS = Settings()
LATER = NOW + timedelta(seconds=30)
LATER_TEXT = "2026-01-02T03:04:35Z"


def started(stage: Stage = Stage.PREPARE, **spec: Any) -> FineTuneJob:
    """A job after its first look; for TRAIN, with its data ready."""
    job = make_job(**{k: v for k, v in spec.items() if k != "cancel"})
    plan = decide(job, before_start(), SETTINGS, NOW)
    job = job.model_copy(update={"status": plan.status})
    if stage is Stage.TRAIN:
        child = make_child(job, Stage.PREPARE, complete=True)
        pod = make_pod(child, ended=NOW_TEXT, exit_code=0)
        job = job.model_copy(update={"status": look(job, seen(Stage.PREPARE, child, pod)).status})
        assert job.status.is_true(ConditionType.DATA_READY)
    if spec.get("cancel"):
        job = cancelling(job)
    return job


def cancelling(job: FineTuneJob) -> FineTuneJob:
    """The job with spec.cancel."""
    return asking(job, cancel=True)


def asking(job: FineTuneJob, **fields: Any) -> FineTuneJob:
    """The job with these fields of its spec changed."""
    return job.model_copy(update={"spec": job.spec.model_copy(update=fields)})


def after(job: FineTuneJob, plan: Plan) -> FineTuneJob:
    """The job once the plan's status is stored."""
    return job.model_copy(update={"status": plan.status})


def seen(stage: Stage, child: ChildJob | None = None, *pods: Pod, reports: dict[str, Heard] | None = None) -> Observed:
    """The stage as it was seen."""
    return Observed(children={stage: child} if child else {}, pods={stage: pods} if pods else {}, reports=reports or {})


def look(job: FineTuneJob, observed: Observed, now: datetime = LATER) -> Plan:
    """One look, half a minute after the start or whenever."""
    return decide(job, observed, SETTINGS, now)


def said(plan: Plan) -> dict[str, tuple[str, str]]:
    """What the conditions say."""
    return conditions(*plan.status.conditions)


def message(plan: Plan, kind: ConditionType) -> str:
    """The sentence of a condition that must be there."""
    found = plan.status.condition(kind)
    assert found is not None
    return found.message
