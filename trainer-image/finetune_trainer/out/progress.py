"""The two ways in which a pod speaks: it answers GET /progress while it runs, and leaves a termination message.

The operator asks; a pod needs no rights and knows no address. A question for another job's uid is answered 404.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any

from finetune_api import names
from finetune_api.failures import Failure
from finetune_api.report import Report
from finetune_api.status import CheckpointType
from finetune_api.trainer import JobIdentity, Stage

WAIT_SECONDS, WAIT_SECONDS_AFTER_STOP = 30.0, 15.0
"""How long the last word waits to be recorded, and how long from when the pod was asked to end."""
TICK_SECONDS = 0.1
SHUTDOWN_SECONDS = 0.05
"""How long the server may take to hear that it is to end."""
CUT_ARGUMENT = 64


class Reporter:
    """The report of a run, which any thread may update and the server hands out."""

    def __init__(
        self, job: JobIdentity, stage: Stage, pod_uid: str | None, heard: Callable[[Report], None] | None = None
    ) -> None:
        """`heard` gets the report after every change, in the thread that made it."""
        self._heard = heard
        self._report = Report(job_uid=job.uid, pod_uid=pod_uid, stage=stage)
        self._lock = Lock()
        self._recorded = Event()
        self._server: ThreadingHTTPServer | None = None

    @property
    def report(self) -> Report:
        """The report as it is now."""
        with self._lock:
            return self._report

    def update(self, **fields: object) -> None:
        """Replace fields of the report, all at once."""
        with self._lock:
            self._report = self._report.model_copy(update=fields)
            if self._heard is not None:
                self._heard(self._report)

    def serve(self, port: int | None = None) -> int:
        """Answer GET /progress and /healthz from now on; returns the port (absent = the contract's, 0 = any free)."""
        handler = type("Handler", (_Handler,), {"reporter": self})
        self._server = ThreadingHTTPServer(("", names.PROGRESS_PORT if port is None else port), handler)
        self._server.daemon_threads = True
        serve = partial(self._server.serve_forever, SHUTDOWN_SECONDS)
        Thread(target=serve, name="progress", daemon=True).start()
        return int(self._server.server_address[1])

    def recorded(self) -> None:
        """The operator says that the last word stands in the job's status."""
        self._recorded.set()

    def last_word(self, failure: Failure | None, stopping: Event, message: Path = Path(names.TERMINATION_LOG)) -> bool:
        """End the report: leave it as termination message and wait until it is recorded. Returns whether it is.

        That it was fetched would not be enough: the operator may die before it writes what it has heard.

        Args:
            failure: why the run ended, None when it ended well.
            stopping: set when the pod is asked to end, so that less time is left.
            message: file that Kubernetes reads; it exists in a pod and nowhere else.
        """
        self.update(finished=True, failure=failure)
        if message.exists():
            message.write_bytes(fitted(self.report, names.TERMINATION_MESSAGE_BYTES))
        if self._server is not None:
            self._wait(stopping)
            self._server.shutdown()
            self._server.server_close()
        return self._recorded.is_set()

    def _wait(self, stopping: Event) -> None:
        deadline = time.monotonic() + WAIT_SECONDS
        while not self._recorded.wait(TICK_SECONDS) and time.monotonic() < deadline:
            if stopping.is_set():
                self._recorded.wait(WAIT_SECONDS_AFTER_STOP)
                return


class _Handler(BaseHTTPRequestHandler):
    reporter: Reporter
    protocol_version = "HTTP/1.1"
    timeout = 5

    def do_GET(self) -> None:
        if self.path == names.HEALTH_PATH:
            self._answer(HTTPStatus.OK, b"ok\n", "text/plain")
        elif self.path == names.PROGRESS_PATH and self._is_for_us():
            report = self.reporter.report
            self._answer(HTTPStatus.OK, fitted(report, names.PROGRESS_BYTES), "application/json")
            if report.finished and self.headers.get(names.RECORDED_HEADER) == report.pod_uid:
                self.reporter.recorded()
        else:
            self._answer(HTTPStatus.NOT_FOUND, b"not found\n", "text/plain")

    def _is_for_us(self) -> bool:
        return self.headers.get(names.PROGRESS_HEADER) == self.reporter.report.job_uid

    def _answer(self, status: HTTPStatus, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Polls are no news."""


def fitted(report: Report, size: int) -> bytes:
    """The report as strict JSON of at most `size` bytes: what matters least goes first.

    Texts that the operator can render itself, curves, token statistics, warnings, older checkpoints, data errors from
    the last; counts stay exact.

    Raises:
        ValueError: a value is not finite.
    """
    document = report.to_json()
    for shorter in _shorter(document):
        body = json.dumps(shorter, allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode()
        if len(body) <= size:
            return body
    raise ValueError(f"a report cannot be cut to {size} bytes")


def _shorter(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The document, again and again with less."""
    yield document
    data: dict[str, Any] = document.get("data", {})
    for error in data.get("errors", []):
        error.pop("message", None)
    yield document
    document.pop("history", None)
    yield document
    data.pop("tokens", None)
    data.pop("warnings", None)
    yield document
    checkpoints: list[dict[str, Any]] = document.get("checkpoints", [])
    for items, first, keep in (
        (document.get("warnings", []), 0, 1),
        (checkpoints, 0, 2),
        (checkpoints, -1 if _holds_the_final_one(checkpoints) else 0, 1),
        (data.get("errors", []), -1, 0),
    ):
        while len(items) > keep:
            items.pop(first)
            yield document
    for key in ("tracking", "estimate", "resolved", "warnings", "data", "checkpoints"):
        document.pop(key, None)
        yield document
    arguments: dict[str, str] = document.get("failure", {}).get("args", {})
    for name in arguments:
        arguments[name] = arguments[name][:CUT_ARGUMENT]
    yield document


def _holds_the_final_one(checkpoints: list[dict[str, Any]]) -> bool:
    """Whether the last two are the final adapter and its merged form: of these the adapter matters more."""
    return [c["type"] for c in checkpoints[-2:]] == [CheckpointType.FINAL, CheckpointType.FINAL_MERGED]
