"""MLflow's own server is asked what it holds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from typing import Any
from uuid import uuid4

import httpx2
import pytest

from finetune_api.tracking import Tracker, TrackerProblem, Tracking
from finetune_api.trainer import JobIdentity
from finetune_trainer.out.lines import Row
from finetune_trainer.out.mlflow import MlflowRun
from finetune_trainer.out.tracking import Task, TrackerFailed
from held import series

ROWS = [
    Row(0, {"eval/loss": 0.7, "eval/kl": 0.0}),
    *(Row(step, {"train/loss": 1 / step, "train/kl": -0.5, "train/kl/chosen": 1e-300}) for step in range(1, 400)),
]
FACTS = {"trainingMethod": {"type": "DPO", "dpo": {"beta": 0.1}}, "lora": None, "long": "x" * 7000}


def task(uri: str, uid: str, **wanted: Any) -> Task:
    return Task(
        tracker=Tracker.MLFLOW,
        job=JobIdentity(namespace="ml", name="dpo", uid=uid),
        tracking=Tracking.model_validate({"mlflow": {"trackingUri": uri, **wanted}}),
        metrics="unused",
        output="unused",
        output_uri="pvc://claim/out",
        facts=FACTS,
    )


@pytest.fixture
def mine(mlflow) -> Task:
    """A run of its own in an experiment of its own."""
    return task(mlflow.uri, str(uuid4()), experiment=f"test {uuid4()}")


def held(mlflow, mine: Task) -> dict[str, Any]:
    assert mine.tracking.mlflow is not None
    (run,) = mlflow.runs(mine.tracking.mlflow.experiment)
    return run


def expected(rows: list[Row]):
    return series([(row.step, row.values) for row in rows])


def test_a_run_holds_every_value_once_and_the_configuration(mlflow, mine):
    run = MlflowRun(mine, {})
    run.send(ROWS)
    run.close(finished=True)
    found = held(mlflow, mine)
    assert mlflow.series(found) == expected(ROWS)
    assert found["info"]["status"] == "FINISHED"
    assert found["info"]["run_name"] == "dpo"
    assert {p["key"]: p["value"] for p in found["data"]["params"]} == {
        "trainingMethod.type": "DPO",
        "trainingMethod.dpo.beta": "0.1",
        "long": "x" * 6000,
    }
    assert run.url.endswith(f"/runs/{found['info']['run_id']}")


def test_a_later_process_goes_on_with_the_run_and_doubles_nothing(mlflow, mine):
    MlflowRun(mine, {}).send(ROWS[:250])
    again = MlflowRun(mine, {})
    assert held(mlflow, mine)["info"]["status"] == "RUNNING"
    again.send(ROWS[:300])
    again.send(ROWS[300:])
    again.close(finished=False)
    found = held(mlflow, mine)
    assert mlflow.series(found) == expected(ROWS)
    assert found["info"]["status"] == "KILLED"


def test_an_evaluation_that_was_lost_behind_its_step_is_sent(mlflow, mine):
    MlflowRun(mine, {}).send([Row(5, {"train/loss": 1.0})])
    rows = [Row(5, {"train/loss": 1.0}), Row(5, {"eval/loss": 2.0})]
    MlflowRun(mine, {}).send(rows)
    assert mlflow.series(held(mlflow, mine)) == expected(rows)


class Answering(BaseHTTPRequestHandler):
    """Answers whatever it is asked alike."""

    status, body = 200, b""
    headers_seen: list[str | None]

    def do_GET(self) -> None:
        self.headers_seen.append(self.headers.get("Authorization"))
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nobody reads it."""


@contextmanager
def answering(status: int, body: bytes) -> Iterator[tuple[str, list[str | None]]]:
    seen: list[str | None] = []
    handler = type("Handler", (Answering,), {"status": status, "body": body, "headers_seen": seen})
    with HTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", seen
        server.shutdown()


@pytest.mark.parametrize(
    ("status", "body", "problem", "detail"),
    [
        (401, b"You are not authenticated", TrackerProblem.REFUSED, "HTTP 401, no JSON"),
        (403, b'{"error_code": "PERMISSION_DENIED"}', TrackerProblem.REFUSED, "HTTP 403 PERMISSION_DENIED"),
        (404, b"<html>", TrackerProblem.REJECTED, "HTTP 404, no JSON"),
        (302, b"", TrackerProblem.REJECTED, "HTTP 302, no JSON"),
        (500, b'{"error_code": "INTERNAL_ERROR"}', TrackerProblem.REJECTED, "HTTP 500 INTERNAL_ERROR"),
        (503, b"", TrackerProblem.UNREACHABLE, "HTTP 503, no JSON"),
        (200, b"[]", TrackerProblem.REJECTED, "HTTP 200"),
        (200, b"{}", TrackerProblem.REJECTED, "experiment"),
    ],
)
def test_what_a_server_answers_is_a_named_failure(status, body, problem, detail):
    with answering(status, body) as (uri, _), pytest.raises(TrackerFailed) as failed:
        MlflowRun(task(uri, "1"), {})
    assert failed.value.problem is problem
    assert detail in failed.value.detail


def test_a_server_that_is_not_there_is_a_named_failure():
    with answering(200, b"") as (uri, _):
        pass
    with pytest.raises(TrackerFailed) as failed:
        MlflowRun(task(uri, "1"), {})
    assert failed.value.problem is TrackerProblem.UNREACHABLE


def test_credentials_come_from_the_environment():
    with answering(401, b"") as (uri, seen):
        for environment in (
            {"MLFLOW_TRACKING_TOKEN": "abc"},
            {"MLFLOW_TRACKING_USERNAME": "me", "MLFLOW_TRACKING_PASSWORD": "x"},
            {},
        ):
            with pytest.raises(TrackerFailed):
                MlflowRun(task(uri, "1"), environment)
    basic = httpx2.BasicAuth("me", "x")._auth_header
    assert seen == ["Bearer abc", basic, None]


def test_a_batch_stays_within_what_the_server_takes(mlflow, mine):
    many = [Row(1, {f"train/{number}": float(number) for number in range(1001)})]
    MlflowRun(mine, {}).send(many)
    held_names = {metric["key"] for metric in held(mlflow, mine)["data"]["metrics"]}
    assert held_names == set(many[0].values)
    assert json.dumps(sorted(held_names))
