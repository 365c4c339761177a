"""What the operator tells Prometheus about itself and the jobs.

A label has only values that code or platform decides: phases, reasons, kinds of objects, runtimes. Names of jobs and
namespaces are none, because users make as many of them as they like.
"""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

from finetune_api.status import Phase, Reason

MINUTE, HOUR = 60.0, 3600.0

JOBS = Gauge("finetune_operator_jobs", "FineTuneJobs by phase.", ["phase"])
JOBS_STALE = Gauge("finetune_operator_jobs_progress_stale", "Jobs whose condition ProgressStale is true.")
PROGRESS_LAG = Gauge(
    "finetune_operator_progress_lag_seconds", "Age of the oldest last report in the status of a running job."
)
FINISHED = Counter("finetune_operator_jobs_finished_total", "Jobs that became final.", ["result", "reason"])
JOB_DURATION = Histogram(
    "finetune_operator_job_duration_seconds",
    "From a job's start to its end.",
    ["result"],
    buckets=(MINUTE, 5 * MINUTE, 15 * MINUTE, HOUR, 3 * HOUR, 6 * HOUR, 12 * HOUR, 24 * HOUR, 72 * HOUR, 168 * HOUR),
)
DISRUPTIONS = Counter(
    "finetune_operator_disruptions_total", "Pods of jobs lost to preemption, eviction or a drain.", ["reason"]
)
RESTARTS = Counter("finetune_operator_restarts_total", "Pods of jobs that failed and were made again.")
GPUS = Gauge("finetune_operator_gpus", "GPUs that running training pods hold.", ["runtime"])
GPU_SECONDS = Counter("finetune_operator_gpu_seconds_total", "GPU time of running training pods.", ["runtime"])

LOOK_SECONDS = Histogram(
    "finetune_operator_look_seconds",
    "How long a look at a job takes.",
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0),
)
LOOK_ERRORS = Counter("finetune_operator_look_errors_total", "Looks that could not end and are repeated.", ["reason"])
STATUS_WRITES = Counter("finetune_operator_status_writes_total", "Status writes.", ["kind"])
REPORTS = Counter("finetune_operator_reports_total", "Answers of pods that were asked for progress.", ["outcome"])
API_REQUESTS = Counter(
    "finetune_operator_api_requests_total",
    "Requests to the API server, without watches; code 0 = no answer.",
    ["verb", "resource", "code"],
)
QUEUE_DEPTH = Gauge("finetune_operator_queue_depth", "Jobs that wait for a worker.")
QUEUE_AGE = Gauge("finetune_operator_queue_oldest_age_seconds", "How long the longest-waiting job has waited.")
LAST_EVENT = Gauge(
    "finetune_operator_watch_last_event_timestamp_seconds",
    "When the watch has last told of a kind of objects; a quiet cluster has nothing to tell.",
    ["resource"],
)
WATCH_BEHIND = Gauge(
    "finetune_operator_watch_behind_seconds", "How long the watch has missed a change that a list shows."
)
WATCHES_MISSING = Gauge("finetune_operator_watches_missing", "Kinds of objects that nobody watches at this moment.")
LEADER = Gauge("finetune_operator_leader", "1 where this process works, 0 where it stands by.")


def count_request(verb: str, path: str, code: int) -> None:
    """Note a request by the kind of object that its path names."""
    API_REQUESTS.labels(verb, resource_of(path), str(code)).inc()


def resource_of(path: str) -> str:
    """The resource of an API path, with its subresource: `finetunejobs/status`."""
    parts = path.strip("/").split("/")
    parts = parts[2:] if parts[0] == "api" else parts[3:]
    if parts[0] == "namespaces" and len(parts) > 2:
        parts = parts[2:]
    return "/".join([parts[0], *parts[2:3]])


ENDS = {
    Phase.COMPLETED: (Reason.SUCCEEDED, Reason.EARLY_STOPPED, Reason.NO_FINAL_REPORT),
    Phase.CANCELLED: (Reason.CANCELLED,),
    Phase.FAILED: (
        *(Reason.DATA_INVALID, Reason.USER_ERROR, Reason.OUT_OF_MEMORY, Reason.DIVERGED, Reason.CHECKPOINT_INVALID),
        *(Reason.DATA_UNREACHABLE, Reason.MODEL_UNAVAILABLE, Reason.PUBLISH_FAILED, Reason.STORAGE_FULL),
        *(Reason.DEADLINE_EXCEEDED, Reason.START_TIMEOUT, Reason.BACKOFF_LIMIT_EXCEEDED, Reason.INTERNAL),
    ),
}
"""How jobs end, and why."""
for _phase, _reasons in ENDS.items():
    # A series that begins at 1 shows no increase, so that the first failure would be missed.
    JOB_DURATION.labels(_phase.value)
    for _reason in _reasons:
        FINISHED.labels(_phase.value, _reason.value)
