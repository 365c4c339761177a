"""What the operator counts about itself, for Prometheus."""

from __future__ import annotations

from prometheus_client import Counter, Gauge

LOOKS = Counter("finetune_operator_looks_total", "Looks at a FineTuneJob.", ["outcome"])
STATUS_WRITES = Counter("finetune_operator_status_writes_total", "Status writes.", ["kind"])
REPORTS = Counter("finetune_operator_reports_total", "Answers of pods that were asked for progress.", ["outcome"])
QUEUE_DEPTH = Gauge("finetune_operator_queue_depth", "Jobs that wait for a worker.")
QUEUE_AGE = Gauge("finetune_operator_queue_oldest_age_seconds", "How long the longest-waiting job has waited.")
