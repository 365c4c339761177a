"""Pods that answer with anything but their progress: the status stays true and small, and nobody waits for them."""

from __future__ import annotations

import gzip
import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from itertools import pairwise
from typing import Any

import pytest

from finetune_api.names import PROGRESS_BYTES
from finetune_api.report import Report
from finetune_api.status import Checkpoint, JobWarning, Progress
from kubelet import Behaviour, wait_for
from world import MOMENT, STEPS, World, progress, published, script

Answer = Callable[[BaseHTTPRequestHandler, Report], None]
PACE = 5.0
"""Seconds of a step."""
UNTRUE = Progress(display="999/999", step=999, total_steps=999, percentage=100)
BOMB = gzip.compress(b" " * 50_000_000)
STATUS_LIMIT = 256 * 1024
"""Far below the 1.5 MiB that etcd takes."""


def send(handler: BaseHTTPRequestHandler, body: bytes, status: int = 200, **headers: str) -> None:
    handler.send_response(status)
    for name, value in {"Content_Length": str(len(body)), **headers}.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)


def text_of(report: Report, **update: Any) -> bytes:
    return report.model_copy(update={"progress": UNTRUE, **update}).model_dump_json().encode()


def sent(make: Callable[[Report], bytes], status: int = 200, **headers: str) -> Answer:
    return lambda handler, report: send(handler, make(report), status, **headers)


def drips(handler: BaseHTTPRequestHandler, report: Report) -> None:
    body = text_of(report)
    handler.wfile.write(f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n".encode())
    for byte in body:
        handler.wfile.write(bytes([byte]))
        time.sleep(0.1)


def never(handler: BaseHTTPRequestHandler, report: Report) -> None:
    time.sleep(20)


def floods_headers(handler: BaseHTTPRequestHandler, report: Report) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
    for number in range(20_000):
        handler.wfile.write(f"X-Header-{number}: {'x' * 1000}\r\n".encode())
    handler.wfile.write(b"\r\n" + text_of(report))


def endless_line(handler: BaseHTTPRequestHandler, report: Report) -> None:
    for _ in range(1000):
        handler.wfile.write(b"x" * 10_000)


HOSTILE: dict[str, Answer] = {
    "garbage": sent(lambda _: b"\x00\xff{[" * 100),
    "ten-megabytes": sent(lambda report: text_of(report) + b" " * 10_000_000),
    "not-a-number": sent(lambda report: text_of(report).replace(b'"epoch":0.0', b'"epoch":NaN')),
    "beyond-64-bits": sent(lambda report: text_of(report).replace(b'"step":999', b'"step":' + b"9" * 30)),
    "no-time": sent(lambda report: text_of(report)[:-1] + b',"recovery":{"step":1,"time":"tomorrow"}}'),
    "nested": sent(lambda _: b"[" * 60_000),
    "drips": drips,
    "never": never,
    "redirects": sent(lambda _: b"", 302, Location="http://127.0.0.1:1/progress"),
    "of-another-job": sent(lambda report: text_of(report, job_uid="another")),
    "reused-address": sent(lambda report: text_of(report, pod_uid="another")),
    "gzip-bomb": sent(lambda _: BOMB, Content_Encoding="gzip"),
    "two-lengths": lambda handler, report: send(handler, text_of(report), **{"Content-Length": "60000"}),
    "too-short": sent(lambda report: text_of(report), Content_Length="60000"),
    "error": sent(text_of, 500),
    "header-flood": floods_headers,
    "endless-line": endless_line,
}


@pytest.fixture(scope="module")
def crowd(shared_world) -> Any:
    """One job for each kind of hostile pod, all of them running; they end when the tests are over."""
    over = threading.Event()
    for name, answer in HOSTILE.items():
        pod = Behaviour((), until=over, answer=answer, word=published(name))
        shared_world.apply(name, script(name, train=[pod]))
    for name in HOSTILE:
        shared_world.wait(name, "Running", seconds=120)
    yield shared_world, over
    over.set()


def size(world: World, name: str) -> int:
    return len(json.dumps(world.status(name), separators=(",", ":")))


def test_a_job_among_hostile_pods_is_told_of_in_time(crowd):
    """Each step that its pod takes is in the status before the next, on a machine that is busy with other things."""
    world, _ = crowd
    steps = tuple(progress(step) for step in range(1, STEPS + 1))
    world.apply("well", script("well", train=[Behaviour(steps, seconds=PACE, word=published("well"))]))
    world.wait("well", "Running", seconds=60)
    seen: dict[int, float] = {}

    def told() -> bool:
        step = world.status("well").get("progress", {}).get("step", 0)
        if step:
            seen.setdefault(step, time.monotonic())
        return step == STEPS

    wait_for(told, "every step of the job", 60)
    late = max(b - a for a, b in pairwise(seen.values())) - PACE
    print(f"a step among {len(HOSTILE)} hostile pods was told {late:.2f} s late at most")
    assert sorted(seen) == list(range(1, STEPS + 1)), "no step was missed"
    assert late < PACE


@pytest.mark.parametrize("name", HOSTILE)
def test_nothing_of_a_hostile_answer_is_believed_and_the_silence_is_told(crowd, name):
    world, _ = crowd
    condition = world.wait(name, "ProgressStale", seconds=60)
    unreachable = name in ("drips", "never")
    assert condition["reason"] == ("EndpointUnreachable" if unreachable else "NoReport")
    status = world.status(name)
    assert "progress" not in status
    assert "recovery" not in status
    assert world.condition(name, "Running")["status"] == "True"
    assert size(world, name) < 16 * 1024


def test_a_report_after_a_silence_is_told(world):
    """The operator is told nothing for ten seconds; then the pod is heard again."""
    silent, over = threading.Event(), threading.Event()

    def answer(handler: BaseHTTPRequestHandler, report: Report) -> None:
        if silent.is_set():
            send(handler, b"garbage")
        else:
            send(handler, report.model_dump_json().encode())

    pod = Behaviour((progress(1),), until=over, answer=answer, word=published("moody"))
    world.apply("moody", script("moody", train=[pod]))
    wait_for(lambda: world.status("moody").get("progress"), "its first report", 60)
    silent.set()
    world.wait("moody", "ProgressStale", reason="NoReport", seconds=60)
    assert world.status("moody")["progress"]["step"] == 1
    silent.clear()
    world.wait("moody", "ProgressStale", "False", seconds=60)
    over.set()
    world.wait("moody", "Complete", seconds=60)


def test_the_largest_status_stays_far_below_what_etcd_takes(world):
    """Every answer as large as it may be, and new checkpoints in each, for as long as it takes to fill the list."""
    over, asked = threading.Event(), [0]

    def checkpoint(number: int, fill: str) -> Checkpoint:
        return Checkpoint(
            name=f"large:{number}",
            step=number,
            type="Intermediate",
            uri=f"pvc://{number}/" + fill * 1500,
            time=MOMENT,
            size_bytes=1,
            sha256="c" * 64,
            metrics={f"{'m' * 60}{key:02d}": 1.5 for key in range(32)},
        )

    def answer(handler: BaseHTTPRequestHandler, report: Report) -> None:
        asked[0] += 1
        fill = "x" if asked[0] % 2 else "<"
        checkpoints = tuple(checkpoint(asked[0] * 5 + number, fill) for number in range(5))
        warnings = tuple(JobWarning(reason=f"R{number}", message=fill * 2500) for number in range(15))
        update = {"checkpoints": checkpoints, "warnings": warnings, "progress": progress(asked[0])["progress"]}
        body = report.model_copy(update=update).model_dump_json(exclude_none=True).encode()
        assert len(body) <= PROGRESS_BYTES
        send(handler, body)

    pod = Behaviour((), until=over, answer=answer, word=published("large"))
    world.apply("large", script("large", train=[pod]))
    wait_for(lambda: asked[0] >= 20, "twenty answers", 120)
    largest = 0

    def filled() -> bool:
        nonlocal largest
        raw = world.plane.kubectl("get", "--raw", f"{world.jobs}/large")
        largest = max(largest, len(raw))
        return json.loads(raw)["status"].get("progress", {}).get("step", 0) >= 20

    wait_for(filled, "the last of them in the status", 60)
    print(f"the largest object was {largest:,} bytes, managed fields and all")
    assert PROGRESS_BYTES / 2 < largest < STATUS_LIMIT
    over.set()
    world.wait("large", "Complete", seconds=60)
