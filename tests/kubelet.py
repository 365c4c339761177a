"""A stand-in for the kubelet: it runs no container, but says of each pod of ours what a real one would say.

What a pod does is a `Behaviour` that a test chooses. The pod gets an address of its own on loopback, serves
`/progress` there, ends with a termination message, and on deletion goes only after it has ended.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from apiserver import Api
from finetune_api.failures import Failure, FailureCode
from finetune_api.names import (
    JOB_NAME_LABEL,
    JOB_UID_LABEL,
    MANAGED_BY,
    MANAGED_BY_LABEL,
    PROGRESS_HEADER,
    PROGRESS_PATH,
    PROGRESS_PORT,
    RECORDED_HEADER,
    STAGE_LABEL,
)
from finetune_api.report import Report
from finetune_api.trainer import ExitCode, Stage

PERIOD = 0.05
CONTAINER = "trainer"
STARTED, NOW = "<started>", "<now>"
"""Stand for times in a status that a test gives."""
KILLED = 137
Fields = dict[str, Any]


@dataclass(frozen=True)
class Behaviour:
    """What one pod does."""

    reports: tuple[Fields, ...] = ()
    """Fields of the Report that it serves, one after the other."""
    seconds: float = 0.4
    """How long each is served."""
    until: threading.Event | None = None
    """It goes on until this is set."""
    exit_code: int = 0
    failure: Failure | None = None
    """Told in the last word; its exit code goes before `exit_code`."""
    word: Fields = field(default_factory=dict)
    """More fields of the last word."""
    silent: bool = False
    """No progress, no last word."""
    killed_for: str | None = None
    """Reason of the end, such as OOMKilled."""
    waiting: str | None = None
    """It never starts: the reason of its container's waiting state."""
    answer: Callable[[BaseHTTPRequestHandler, Report], None] | None = None
    """What it answers to GET /progress instead of its report."""
    before: Fields | None = None
    """Its whole status until `until` is set, as scheduler or kubelet writes it; then it starts."""
    homeless: bool = False
    """No node takes it before it starts."""
    after: tuple[Fields, ...] = ()
    """Whole statuses that others write, one after the other, when it has told all: its node is lost, it is evicted."""
    when_stopped: int = ExitCode.STOPPED
    """Its exit code when it is deleted while it works: it saves, or is done (0), or is killed without a word (137)."""
    leaves: threading.Event | None = None
    """When its work is done it serves its last report until that is recorded, as our trainer does, and this is set."""


Script = Callable[[Stage, int], Behaviour]
"""What the pod does of that stage and attempt (from 0)."""


@dataclass
class Told:
    """What has passed between a pod and the operator."""

    finished: threading.Event = field(default_factory=threading.Event)
    """The pod serves its last report."""
    recorded: threading.Event = field(default_factory=threading.Event)
    """It was told that this is in the status."""


@dataclass
class _Pod:
    manifest: dict[str, Any]
    behaviour: Behaviour
    address: str
    stage: Stage
    report: Report
    going: threading.Event = field(default_factory=threading.Event)
    """It is being deleted."""
    told: Told = field(default_factory=Told)
    ended: bool = False

    @property
    def path(self) -> str:
        metadata = self.manifest["metadata"]
        return f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}"


class Kubelet(threading.Thread):
    """Runs all pods of ours."""

    def __init__(self, api: Api) -> None:
        super().__init__(name="kubelet", daemon=True)
        self.scripts: dict[tuple[str, str], Script] = {}
        """By namespace and job; other pods are left alone."""
        self._api, self._pods, self._attempts = api, {}, {}
        self._pods: dict[str, _Pod]
        self._attempts: dict[tuple[str, str], int]
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Kubelet:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End, and with it every pod."""
        self._over.set()
        self.join()
        for pod in self._pods.values():
            pod.going.set()
        for thread in self._threads:
            thread.join()
        self._api.close()

    def told(self, uid: str) -> Told:
        """What has passed between that pod and the operator."""
        return wait_for(lambda: self._pods.get(uid), f"pod {uid}").told

    def run(self) -> None:
        """Look again and again, as a watch would tell."""
        selector = f"/api/v1/pods?labelSelector={MANAGED_BY_LABEL}%3D{MANAGED_BY}"
        while not self._over.wait(PERIOD):
            with contextlib.suppress(OSError):  # the API server is away
                for manifest in self._api.get(selector).must()["items"]:
                    self._look(manifest)

    def _look(self, manifest: dict[str, Any]) -> None:
        uid = manifest["metadata"]["uid"]
        script = self.scripts.get((manifest["metadata"]["namespace"], manifest["metadata"]["labels"][JOB_NAME_LABEL]))
        if uid not in self._pods:
            if script is not None:
                self._start(manifest, script)
        elif "deletionTimestamp" in manifest["metadata"]:
            self._pods[uid].going.set()
            if self._pods[uid].ended:
                self._api.delete(self._pods[uid].path, gracePeriodSeconds=0)

    def _start(self, manifest: dict[str, Any], script: Script) -> None:
        metadata = manifest["metadata"]
        stage = Stage.PREPARE if metadata["labels"][STAGE_LABEL] == "prepare" else Stage.TRAIN
        job = metadata["labels"][JOB_UID_LABEL]
        number = self._attempts.get((job, stage), 0)
        self._attempts[job, stage] = number + 1
        report = Report(job_uid=job, pod_uid=metadata["uid"], stage=stage)
        address = f"127.{random.randint(16, 250)}.{random.randint(0, 250)}.{random.randint(2, 250)}"
        pod = self._pods[metadata["uid"]] = _Pod(manifest, script(stage, number), address, stage, report)
        thread = threading.Thread(target=_run, args=(pod, self._api.another()), daemon=True)
        self._threads.append(thread)
        thread.start()


def _run(pod: _Pod, api: Api) -> None:
    """One pod from its binding to its end."""
    try:
        if _starts(api, pod):
            _lives(api, pod)
    finally:
        pod.ended = True
        api.close()


def _starts(api: Api, pod: _Pod) -> bool:
    """Bind it and let it wait as told; False if it never comes to run."""
    behaviour = pod.behaviour
    if not behaviour.homeless and not _bound(api, pod):
        return False
    if behaviour.waiting:
        _say(api, pod, {"phase": "Pending"}, {"waiting": {"reason": behaviour.waiting, "message": "as told"}})
        pod.going.wait()
        return False
    if behaviour.before is None:
        return True
    _write(api, pod, behaviour.before)
    while behaviour.until is None or not behaviour.until.is_set():
        if pod.going.wait(PERIOD):
            return False
    return not behaviour.homeless or _bound(api, pod)


def _bound(api: Api, pod: _Pod) -> bool:
    target = {"apiVersion": "v1", "kind": "Node", "name": "node"}
    name = pod.manifest["metadata"]["name"]
    return api.post(f"{pod.path}/binding", {"metadata": {"name": name}, "target": target}).ok


def _lives(api: Api, pod: _Pod) -> None:
    started, server = _now(), _serve(pod)
    try:
        _say(api, pod, {"phase": "Running"}, {"running": {"startedAt": started}})
        _work(pod)
    finally:
        server.shutdown()
        server.server_close()
        api.close()  # the API server has left a connection that was idle for long
    if pod.behaviour.after:
        _struck(api, pod, started)
    else:
        _end(api, pod, started)


def _struck(api: Api, pod: _Pod, started: str) -> None:
    """What others say of the pod, each for a while; the last one stays."""
    for status in pod.behaviour.after:
        _write(api, pod, json.loads(json.dumps(status).replace(STARTED, started).replace(NOW, _now())))
        if pod.going.wait(pod.behaviour.seconds):
            return


def _write(api: Api, pod: _Pod, status: Fields) -> None:
    said = api.patch(f"{pod.path}/status", {"status": status})
    assert said.ok or said.status in (404, 409), said.message


def _work(pod: _Pod) -> None:
    for fields in pod.behaviour.reports:
        pod.report = pod.report.model_copy(update=fields)
        if pod.going.wait(pod.behaviour.seconds):
            return
    while pod.behaviour.until is not None and not pod.behaviour.until.is_set():
        if pod.going.wait(PERIOD):
            return
    if pod.behaviour.leaves is not None:
        last = {**pod.behaviour.word, "finished": True, "failure": pod.behaviour.failure}
        pod.report = pod.report.model_copy(update=last)
        pod.told.finished.set()
        while not (pod.told.recorded.is_set() and pod.behaviour.leaves.is_set()) and not pod.going.wait(PERIOD):
            pass


def _end(api: Api, pod: _Pod, started: str) -> None:
    """The exit code and the last word: stopped on request, failed, or done."""
    failure, killed = pod.behaviour.failure, pod.behaviour.killed_for
    code = int(failure.exit_code) if failure is not None else pod.behaviour.exit_code
    if pod.going.is_set() and not pod.told.recorded.is_set():
        code = pod.behaviour.when_stopped
        killed = "Error" if code == KILLED else None
        if not pod.told.finished.is_set():  # else its last word stays what it was
            failure = Failure(code=FailureCode.STOPPED, args={"step": "1"}) if code == ExitCode.STOPPED else None
    word = pod.report.model_copy(update={**pod.behaviour.word, "finished": True, "failure": failure})
    said = "" if pod.behaviour.silent or killed else json.dumps(word.to_json())
    end = {
        "exitCode": KILLED if killed else code,
        "reason": killed or ("Completed" if code == ExitCode.DONE else "Error"),
        "message": said,
        "startedAt": started,
        "finishedAt": _now(),
    }
    phase = "Succeeded" if end["exitCode"] == 0 else "Failed"
    _say(api, pod, {"phase": phase}, {"terminated": end})


def _say(api: Api, pod: _Pod, status: Fields, state: Fields) -> None:
    """Write the pod's status; a pod that is gone meanwhile needs none."""
    container = {
        "name": CONTAINER,
        "image": "trainer",
        "imageID": "",
        "ready": "running" in state,
        "started": "running" in state,
        "restartCount": 0,
        "state": state,
    }
    addresses = {"podIP": pod.address, "podIPs": [{"ip": pod.address}]} if "waiting" not in state else {}
    _write(api, pod, {**status, **addresses, "containerStatuses": [container]})


def _serve(pod: _Pod) -> ThreadingHTTPServer:
    """The pod's progress, to whoever knows the job's uid."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if pod.behaviour.answer is not None:
                with contextlib.suppress(ConnectionError):
                    pod.behaviour.answer(self, pod.report)
                return
            job = pod.manifest["metadata"]["labels"][JOB_UID_LABEL]
            known = self.path == PROGRESS_PATH and self.headers[PROGRESS_HEADER] == job and not pod.behaviour.silent
            body = json.dumps(pod.report.to_json()).encode() if known else b""
            self.send_response(http.client.OK if known else http.client.NOT_FOUND)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            if known and pod.report.finished and self.headers[RECORDED_HEADER] == pod.report.pod_uid:
                pod.told.recorded.set()

        def log_message(self, format: str, *args: Any) -> None:
            """Silence."""

    server = ThreadingHTTPServer((pod.address, PROGRESS_PORT), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": PERIOD}, daemon=True).start()
    return server


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def wait_for(condition: Callable[[], Any], what: str, seconds: float = 30.0) -> Any:
    """The first true value of `condition`."""
    deadline = time.monotonic() + seconds
    while True:
        if value := condition():
            return value
        assert time.monotonic() < deadline, f"waited {seconds:g} s for {what}"
        time.sleep(PERIOD)


def as_json(value: Any) -> str:
    """For messages of failed assertions."""
    return json.dumps(value, indent=1, sort_keys=True)
