"""Grafana's dashboard of the operator: one row of panels per question, written as data."""

from __future__ import annotations

from typing import Any

PREFIX = "finetune_operator"
WIDTH, HEIGHT, PER_ROW = 8, 8, 3
Query = tuple[str, str]
"""Expression and legend."""
PANELS: tuple[tuple[str, str, tuple[Query, ...]], ...] = (
    ("Jobs by phase", "short", (("sum by (phase) (P_jobs)", "{{phase}}"),)),
    (
        "Jobs that ended, per hour",
        "short",
        (("sum by (result, reason) (rate(P_jobs_finished_total[1h])) * 3600", "{{result}}: {{reason}}"),),
    ),
    (
        "How long jobs take (median, 90 %)",
        "s",
        (
            ("histogram_quantile(0.5, sum by (le) (rate(P_job_duration_seconds_bucket[1d])))", "median"),
            ("histogram_quantile(0.9, sum by (le) (rate(P_job_duration_seconds_bucket[1d])))", "90 %"),
        ),
    ),
    ("GPUs at work", "short", (("sum by (runtime) (P_gpus)", "{{runtime}}"),)),
    ("GPU hours per day", "short", (("sum by (runtime) (increase(P_gpu_seconds_total[1d])) / 3600", "{{runtime}}"),)),
    (
        "Disruptions and restarts per hour",
        "short",
        (
            ("sum(increase(P_disruptions_total[1h]))", "disruptions"),
            ("sum(increase(P_restarts_total[1h]))", "restarts"),
        ),
    ),
    ("Age of the oldest report of a running job", "s", (("max(P_progress_lag_seconds)", "age"),)),
    ("Answers of pods per second", "reqps", (("sum by (outcome) (rate(P_reports_total[5m]))", "{{outcome}}"),)),
    ("Status writes per second", "wps", (("sum by (kind) (rate(P_status_writes_total[5m]))", "{{kind}}"),)),
    (
        "How long a look takes (median, 99 %)",
        "s",
        (
            ("histogram_quantile(0.5, sum by (le) (rate(P_look_seconds_bucket[5m])))", "median"),
            ("histogram_quantile(0.99, sum by (le) (rate(P_look_seconds_bucket[5m])))", "99 %"),
        ),
    ),
    ("Looks that failed, per second", "ops", (("sum by (reason) (rate(P_look_errors_total[5m]))", "{{reason}}"),)),
    (
        "Jobs that wait for a look",
        "short",
        (("max(P_queue_depth)", "jobs"), ("max(P_queue_oldest_age_seconds)", "longest, seconds")),
    ),
    (
        "Requests to the API server per second",
        "reqps",
        (("sum by (verb, resource, code) (rate(P_api_requests_total[5m]))", "{{verb}} {{resource}} {{code}}"),),
    ),
    (
        "Since the last event",
        "s",
        (("time() - max by (resource) (P_watch_last_event_timestamp_seconds)", "{{resource}}"),),
    ),
    (
        "Is it well?",
        "short",
        (
            ("sum(P_leader)", "operators at work"),
            ("max(P_jobs_progress_stale)", "jobs with ProgressStale"),
            ("max(P_watches_missing)", "kinds not watched"),
            ("max(P_watch_behind_seconds)", "watch behind, seconds"),
        ),
    ),
)


def dashboard() -> dict[str, Any]:
    """The dashboard as Grafana imports it; the data source is asked for."""
    source = {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Data source"}
    return {
        "uid": "finetune-operator",
        "title": "Fine-tuning jobs and their operator",
        "tags": ["finetune"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {"list": [source]},
        "panels": [_panel(number, *panel) for number, panel in enumerate(PANELS)],
    }


def _panel(number: int, title: str, unit: str, queries: tuple[Query, ...]) -> dict[str, Any]:
    row, column = divmod(number, PER_ROW)
    return {
        "id": number + 1,
        "type": "timeseries",
        "title": title,
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "gridPos": {"x": column * WIDTH, "y": row * HEIGHT, "w": WIDTH, "h": HEIGHT},
        "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
        "targets": [
            {"refId": chr(ord("A") + place), "expr": expression.replace("P_", f"{PREFIX}_"), "legendFormat": legend}
            for place, (expression, legend) in enumerate(queries)
        ],
    }
