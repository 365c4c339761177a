"""MLflow by the few calls of its REST API that a run needs; its own client would bring some forty packages.

A run is found again by a tag that holds the job's id. The server tells the newest step that it holds of each metric,
so nothing is sent twice: not after a restart, and not when an answer was lost.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any
from urllib.parse import quote

import httpx2

from finetune_api.names import job_id
from finetune_api.tracking import TrackerProblem
from finetune_trainer.out.lines import Row
from finetune_trainer.out.tracking import Task, TrackerFailed, flat

JOB_TAG = "finetune_job_id"
TOKEN, USER, PASSWORD = "MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"
TIMEOUT_SECONDS = 15.0
FORBIDDEN, BUSY = (401, 403), (429, 502, 503, 504)
MOST_METRICS, MOST_PARAMS, MOST_CHARACTERS = 1000, 100, 6000
"""Bounds of one log-batch call, and of a parameter's text."""


class MlflowRun:
    """A run on a tracking server."""

    def __init__(self, task: Task, environment: Mapping[str, str]) -> None:
        """Find the job's run, or create it.

        Args:
            environment: holds the credentials.

        Raises:
            TrackerFailed
        """
        wanted = task.tracking.mlflow
        assert wanted is not None
        self._address, token, user = wanted.tracking_uri.rstrip("/"), environment.get(TOKEN), environment.get(USER)
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._auth = (user, environment.get(PASSWORD, "")) if user and not token else None
        try:
            experiment = self._experiment(wanted.experiment)
            run = self._found(experiment, task) or self._created(experiment, task, wanted.name or task.job.name)
            self._id, data = str(run["info"]["run_id"]), run["data"]
            self._held = {metric["key"]: int(metric.get("step", 0)) for metric in data.get("metrics", [])}
        except KeyError as error:
            raise TrackerFailed(TrackerProblem.REJECTED, f"its answer has no {error}") from error
        place = f"experiments/{quote(experiment, safe='')}/runs/{quote(self._id, safe='')}"
        self.url = f"{self._address}/#/{place}"
        self._state("RUNNING")
        if not data.get("params"):
            self._configure(task.facts)

    def send(self, rows: Sequence[Row]) -> None:
        """Log the values that are newer than what the server holds of their metric."""
        values = self._new(rows)
        while batch := list(islice(values, MOST_METRICS)):
            self._call("POST", "runs/log-batch", {"run_id": self._id, "metrics": batch})
            self._held |= {metric["key"]: metric["step"] for metric in batch}

    def close(self, finished: bool) -> None:
        """Say how the run ended."""
        self._state("FINISHED" if finished else "KILLED")

    def _new(self, rows: Sequence[Row]) -> Iterator[dict[str, Any]]:
        now, held = time.time_ns() // 1_000_000, dict(self._held)
        for row in rows:
            for name, value in row.values.items():
                if row.step > held.get(name, -1):
                    yield {"key": name, "value": value, "timestamp": now, "step": row.step}

    def _experiment(self, name: str) -> str:
        found = self._call("GET", "experiments/get-by-name", {"experiment_name": name}, absent=True)
        if found is not None:
            return str(found["experiment"]["experiment_id"])
        return str(self._call("POST", "experiments/create", {"name": name})["experiment_id"])

    def _found(self, experiment: str, task: Task) -> dict[str, Any] | None:
        asked = {
            "experiment_ids": [experiment],
            "filter": f"tags.{JOB_TAG} = '{job_id(task.job.uid)}'",
            "order_by": ["attributes.start_time DESC"],
            "max_results": 1,
        }
        runs = self._call("POST", "runs/search", asked).get("runs", [])
        return runs[0] if runs else None

    def _created(self, experiment: str, task: Task, name: str) -> dict[str, Any]:
        asked = {
            "experiment_id": experiment,
            "run_name": name,
            "start_time": time.time_ns() // 1_000_000,
            "tags": [{"key": JOB_TAG, "value": job_id(task.job.uid)}],
        }
        run: dict[str, Any] = self._call("POST", "runs/create", asked)["run"]
        return run

    def _configure(self, facts: Mapping[str, Any]) -> None:
        params = ({"key": key, "value": value[:MOST_CHARACTERS]} for key, value in flat(facts).items())
        while batch := list(islice(params, MOST_PARAMS)):
            self._call("POST", "runs/log-batch", {"run_id": self._id, "params": batch})

    def _state(self, state: str) -> None:
        end = {} if state == "RUNNING" else {"end_time": time.time_ns() // 1_000_000}
        self._call("POST", "runs/update", {"run_id": self._id, "status": state, **end})

    def _call(self, method: str, path: str, asked: dict[str, Any], *, absent: bool = False) -> Any:
        """The answer; None for what is not there, where it may be `absent`.

        Raises:
            TrackerFailed
        """
        how: dict[str, Any] = {"params": asked} if method == "GET" else {"json": asked}
        how |= {"headers": self._headers, "auth": self._auth, "timeout": TIMEOUT_SECONDS}
        try:
            answer = httpx2.request(method, f"{self._address}/api/2.0/mlflow/{path}", **how)
            body = answer.json()
        except httpx2.HTTPError as error:
            raise TrackerFailed(TrackerProblem.UNREACHABLE, type(error).__name__) from error
        except ValueError as error:
            raise TrackerFailed(_problem(answer.status_code), f"HTTP {answer.status_code}, no JSON") from error
        if answer.is_success and isinstance(body, dict):
            return body
        code = str(body.get("error_code", "")) if isinstance(body, dict) else ""
        if absent and code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise TrackerFailed(_problem(answer.status_code), f"HTTP {answer.status_code} {code}".strip())


def _problem(status: int) -> TrackerProblem:
    if status in FORBIDDEN:
        return TrackerProblem.REFUSED
    return TrackerProblem.UNREACHABLE if status in BUSY else TrackerProblem.REJECTED
