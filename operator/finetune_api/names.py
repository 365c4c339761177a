"""The one home of every name that two parts must agree on: group, labels, paths, ports, child names."""

from __future__ import annotations

import re
from typing import Final, Literal

GROUP = "finetune.dev"
VERSION = "v1alpha1"
API_VERSION: Final = "finetune.dev/v1alpha1"
JOB_KIND: Final = "FineTuneJob"
RUNTIME_KIND: Final = "FineTuneRuntime"
ApiVersion = Literal["finetune.dev/v1alpha1"]
JOB_PLURAL, JOB_SINGULAR, JOB_SHORT = "finetunejobs", "finetunejob", "ftj"
RUNTIME_PLURAL, RUNTIME_SINGULAR, RUNTIME_SHORT = "finetuneruntimes", "finetuneruntime", "ftr"
JOB_CATEGORY = "ml"

OPERATOR = f"{GROUP}/operator"
"""spec.managedBy of the jobs that this operator looks after."""
FIELD_MANAGER = "finetune-operator"
MANAGED_BY_LABEL, MANAGED_BY = "app.kubernetes.io/managed-by", "finetune-operator"
JOB_NAME_LABEL = f"{GROUP}/job-name"
JOB_UID_LABEL = f"{GROUP}/job-uid"
STAGE_LABEL = f"{GROUP}/stage"
QUEUE_LABEL, PRIORITY_LABEL = "kueue.x-k8s.io/queue-name", "kueue.x-k8s.io/priority-class"
QUEUED_JOB_LABEL = "kueue.x-k8s.io/job-uid"
"""On a Workload of Kueue's: the uid of its batch/v1 Job."""
CONFIG_ANNOTATION = f"{GROUP}/trainer-config"
STOP_ANNOTATION = f"{GROUP}/stop"
PARKED_LABEL = f"{GROUP}/queue-name"
"""On a Job that was taken out of its queue: the queue that it returns to."""

JOB_NAME_PATTERN = r"^[a-z]([-a-z0-9]{0,50}[a-z0-9])?$"

MODEL_PART_LENGTH = 100

# Inside a training pod.
CONFIG_DIRECTORY, CONFIG_FILE = "/etc/finetune", "config.json"
CLAIM_MOUNT_ROOT, CONFIG_MAP_MOUNT_ROOT = "/mnt/claims", "/mnt/configmaps"
HOME_DIRECTORY = "/home/finetune"
TERMINATION_LOG = "/dev/termination-log"
TERMINATION_MESSAGE_BYTES = 4096
USER_ID = 65532
POD_UID_ENV = "FINETUNE_POD_UID"

PROGRESS_PORT = 8080
PROGRESS_PATH, HEALTH_PATH = "/progress", "/healthz"
PROGRESS_HEADER = "X-Finetune-Job"
"""Of a question: the uid of the FineTuneJob that it is about."""
RECORDED_HEADER = "X-Finetune-Recorded"
"""Of a question: the uid of the pod, once its final report is in the status."""
PROGRESS_BYTES = 64 * 1024
RENDEZVOUS_PORT = 29500
"""Where the pod of index 0 waits for the others."""
MEETING_SECONDS = 24 * 3600
"""How long a pod waits for the others. Far longer than a start may take: the operator ends a start that takes too
long, with a reason, where torchrun would only fail."""
INDEX_ANNOTATION = "batch.kubernetes.io/job-completion-index"
"""Which pod of an Indexed Job a pod is."""

# Below the output URI.
PRIVATE_DIRECTORY = ".finetune"
METRICS_FILE, DATA_REPORT_FILE, MANIFEST_FILE = "metrics.jsonl", "data-report.json", "manifest.json"
REPORT_FILE, REPORT_FACTS_FILE = "report.html", "report.json"
"""How the run went, as a page, and what the page is made of beside METRICS_FILE. Both quote some rows of the data."""
CHECKPOINTS_DIRECTORY, ADAPTER_DIRECTORY, MODEL_DIRECTORY = "checkpoints", "adapter", "model"
MERGED_DIRECTORY = "merged"
TENSORBOARD_DIRECTORY, WANDB_DIRECTORY = "tensorboard", "wandb"


def prepare_job_name(job: str) -> str:
    """The Job that checks and tokenises the data of FineTuneJob `job`."""
    return f"{job}-prepare"


def train_job_name(job: str) -> str:
    """The Job that trains FineTuneJob `job`."""
    return f"{job}-train"


def job_id(uid: str) -> str:
    """The public id of a job: `ft-<uid>`."""
    return f"ft-{uid}"


def output_name(namespace: str, model: str, suffix: str | None, uid: str) -> str:
    """`<namespace>/<last part of the model name, lower case>[-<suffix>]-<first 8 of the uid>`.

    `model` is the model as resolved, revision left out: a Hub id, a runtime's model name or a URI. Its part is cut
    at 100 characters, so that the whole fits a status, and what no path of a claim may hold becomes a hyphen.
    """
    last = model.rstrip("/").rsplit("/", 1)[-1].split("@", 1)[0].lower()[:MODEL_PART_LENGTH]
    last = re.sub(r"[^a-z0-9._-]+|^\.+", "-", last)
    return f"{namespace}/{'-'.join(part for part in (last, suffix, uid[:8]) if part)}"
