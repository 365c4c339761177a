"""What Prometheus is told of the jobs: phases, ends, GPU time; never a job's name."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from prometheus_client import REGISTRY

from builders import NOW, NOW_TEXT, job_manifest, runtime_manifest
from finetune_api.status import Phase
from finetune_operator.census import Census
from finetune_operator.metrics import resource_of

KEY = ("team", "tune")
GPU_RUNTIME = runtime_manifest("h200", defaults={"resources": {"gpusPerNode": 1}})["spec"]


class Clock:
    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def counting() -> tuple[Census, Clock]:
    clock = Clock()
    return Census(clock, lambda: NOW + timedelta(seconds=clock.seconds)), clock


def value(name: str, **labels: str) -> float:
    """A metric's value as it would be scraped; 0 where it has none yet."""
    return REGISTRY.get_sample_value(f"finetune_operator_{name}", labels) or 0.0


def conditions(**which: tuple[str, str]) -> list[dict[str, Any]]:
    return [
        {"type": kind, "status": status, "reason": reason, "message": "", "lastTransitionTime": NOW_TEXT}
        for kind, (status, reason) in which.items()
    ]


def running(**more: Any) -> dict[str, Any]:
    resolved = {"runtime": {"name": "h200", "generation": 1, "spec": GPU_RUNTIME}}
    return job_manifest(
        status={
            "phase": "Running",
            "startTime": NOW_TEXT,
            "conditions": conditions(Running=("True", "Running")),
            "resolved": resolved,
            **more,
        }
    )


def ended(phase: str, kind: str, reason: str, **more: Any) -> dict[str, Any]:
    later = "2026-01-02T04:04:05Z"
    final = {"completionTime": later, "conditions": conditions(**{kind: ("True", reason)}), **more}
    return running(**{"phase": phase, **final})


def test_jobs_are_counted_by_phase_and_forgotten_when_deleted() -> None:
    census, _ = counting()
    census.saw(KEY, job_manifest())
    census.saw(("team", "other"), running())
    census.tell()
    assert (value("jobs", phase="Pending"), value("jobs", phase="Running")) == (1, 1)
    census.gone(("team", "other"))
    census.saw(KEY, ended("Completed", "Complete", "Succeeded"))
    census.tell()
    told = {phase.value: value("jobs", phase=phase.value) for phase in Phase}
    assert {phase: number for phase, number in told.items() if number} == {"Completed": 1}


@pytest.mark.parametrize(
    ("phase", "kind", "reason", "label"),
    [
        ("Completed", "Complete", "Succeeded", "Succeeded"),
        ("Failed", "Failed", "OutOfMemory", "OutOfMemory"),
        ("Cancelled", "Failed", "Cancelled", "Cancelled"),
        ("Failed", "Failed", "OfALaterVersion", "Other"),
    ],
)
def test_an_end_is_counted_once_with_its_reason_and_how_long_it_took(phase, kind, reason, label) -> None:
    census, _ = counting()
    before = value("jobs_finished_total", result=phase, reason=label)
    lasted = value("job_duration_seconds_sum", result=phase)
    census.saw(KEY, running())
    for _ in range(3):
        census.saw(KEY, ended(phase, kind, reason))
    assert value("jobs_finished_total", result=phase, reason=label) == before + 1
    assert value("job_duration_seconds_sum", result=phase) == lasted + 3600


def test_what_was_over_before_this_process_began_is_not_counted_again() -> None:
    census, _ = counting()
    before = value("jobs_finished_total", result="Completed", reason="Succeeded")
    census.saw(KEY, ended("Completed", "Complete", "Succeeded", disruptions=3))
    assert value("jobs_finished_total", result="Completed", reason="Succeeded") == before


def test_gpu_time_is_counted_while_training_pods_run_and_never_twice() -> None:
    census, clock = counting()
    before = value("gpu_seconds_total", runtime="h200")
    census.saw(KEY, running())
    clock.seconds = 10
    census.tell()
    assert value("gpus", runtime="h200") == 1
    clock.seconds = 15
    census.saw(KEY, running())
    census.tell()
    clock.seconds = 20
    census.saw(KEY, ended("Completed", "Complete", "Succeeded"))
    clock.seconds = 100
    census.tell()
    assert value("gpu_seconds_total", runtime="h200") - before == 20
    assert value("gpus", runtime="h200") == 0
    census.saw(KEY, running())
    clock.seconds = 101
    census.gone(KEY)
    assert value("gpu_seconds_total", runtime="h200") - before == 21


def attempt(pod: str, reason: str | None) -> dict[str, Any]:
    return {"pod": pod, **({"endTime": NOW_TEXT, "reason": reason} if reason else {})}


def test_a_disruption_is_counted_with_the_reason_of_the_pod_that_has_ended_since() -> None:
    census, _ = counting()
    before = {reason: value("disruptions_total", reason=reason) for reason in ("Evicted", "NodeLost", "Other")}
    earlier = [attempt("a", "Preempted"), attempt("b", None)]
    census.saw(KEY, running(disruptions=1, attempts=earlier))
    later = [
        earlier[0],
        attempt("b", "Evicted"),
        attempt("c", "Internal"),
        attempt("d", "NodeLost"),
        attempt("e", None),
    ]
    census.saw(KEY, running(disruptions=3, restarts=1, attempts=later))
    assert {r: value("disruptions_total", reason=r) - n for r, n in before.items()} == {
        "Evicted": 1,
        "NodeLost": 1,
        "Other": 0,
    }
    census.saw(KEY, running(disruptions=5, restarts=1, attempts=later))
    assert value("disruptions_total", reason="Other") - before["Other"] == 2, "more than the status keeps attempts of"


def test_restarts_silence_and_lag() -> None:
    census, clock = counting()
    restarts = value("restarts_total")
    census.saw(KEY, running(restarts=1))
    census.saw(KEY, running(restarts=2))
    assert value("restarts_total") - restarts == 1
    silent = conditions(Running=("True", "Running"), ProgressStale=("True", "NoReport"))
    progress = {"display": "1/2", "step": 1, "totalSteps": 2, "percentage": 50, "lastReportTime": NOW_TEXT}
    census.saw(KEY, running(conditions=silent, progress=progress))
    clock.seconds = 42
    census.tell()
    assert (value("jobs_progress_stale"), value("progress_lag_seconds")) == (1, 42)
    census.saw(KEY, ended("Failed", "Failed", "Cancelled", progress=progress))
    census.tell()
    assert (value("jobs_progress_stale"), value("progress_lag_seconds")) == (0, 0)


def test_a_status_of_another_version_ends_nothing() -> None:
    census, _ = counting()
    census.saw(KEY, running(phase="Contemplating"))
    census.saw(KEY, {**running(), "spec": {"novelty": True}})
    census.tell()
    assert value("jobs", phase="Running") == 1


@pytest.mark.parametrize(
    ("path", "resource"),
    [
        ("/apis/finetune.dev/v1alpha1/finetunejobs", "finetunejobs"),
        ("/apis/finetune.dev/v1alpha1/namespaces/a/finetunejobs/b/status", "finetunejobs/status"),
        ("/apis/finetune.dev/v1alpha1/finetuneruntimes/gpu", "finetuneruntimes"),
        ("/api/v1/namespaces/a/pods", "pods"),
        ("/api/v1/namespaces", "namespaces"),
        ("/apis/batch/v1/namespaces/jobs/jobs/jobs", "jobs"),
    ],
)
def test_a_request_is_counted_by_the_kind_that_it_is_about(path, resource) -> None:
    assert resource_of(path) == resource
