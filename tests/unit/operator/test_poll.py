"""A pod is believed only when it is that pod, about that job, in time, small, and to the letter of the schema."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from builders import JOB_UID, NOW, make_child, make_job, make_pod, make_progress, report_for
from finetune_api import names
from finetune_api.status import JobWarning
from finetune_api.trainer import Stage
from finetune_operator.metrics import REPORTS
from finetune_operator.plan.state import Pod
from finetune_operator.poll import Poller
from finetune_operator.settings import Settings

CHILD = make_child(make_job(), Stage.TRAIN)
POD = make_pod(CHILD, ip="127.0.0.1")
GOOD = report_for(POD, Stage.TRAIN, progress=make_progress(7))
SETTINGS = Settings(poll_timeout_seconds=0.3)
Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def pod_server(answer: Answer) -> AsyncIterator[Poller]:
    """A Poller whose pods answer as `answer` says."""
    application = web.Application()
    application.router.add_get(names.PROGRESS_PATH, answer)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    try:
        async with aiohttp.ClientSession(auto_decompress=False) as session:
            yield Poller(session, SETTINGS, port=port)
    finally:
        await runner.cleanup()


def hear(answer: Answer, *pods: Pod, child_uid: str = CHILD.uid) -> dict[str, Any]:
    """What the poller has heard after one turn."""

    async def story() -> dict[str, Any]:
        async with pod_server(answer) as poller:
            return await poller.hear(JOB_UID, child_uid, pods or (POD,), NOW)

    return asyncio.run(story())


def answering(body: str | bytes, status: int = 200, **headers: str) -> Answer:
    async def answer(_: web.Request) -> web.Response:
        raw = body.encode() if isinstance(body, str) else body
        return web.Response(body=raw, status=status, headers=headers)

    return answer


def counted(outcome: str) -> float:
    return REPORTS.labels(outcome)._value.get()


def test_a_pods_report_is_heard_and_the_question_names_the_job():
    asked = []

    async def answer(request: web.Request) -> web.Response:
        asked.append(dict(request.headers))
        return web.Response(text=GOOD.model_dump_json())

    found = hear(answer)
    assert found[POD.uid].report == GOOD
    assert found[POD.uid].at == "2026-01-02T03:04:05Z"
    assert asked[0][names.PROGRESS_HEADER] == JOB_UID


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (answering(GOOD.model_copy(update={"job_uid": "another"}).model_dump_json()), "foreign"),
        (answering(GOOD.model_copy(update={"pod_uid": "another"}).model_dump_json()), "foreign"),
        (answering(GOOD.model_copy(update={"pod_uid": None}).model_dump_json()), "foreign"),
        (answering("not JSON"), "malformed"),
        (answering(GOOD.model_dump_json()[:-1] + ',"unknown":1}'), "malformed"),
        (answering("{}" + " " * names.PROGRESS_BYTES), "too_long"),
        (answering("", status=404), "refused"),
        (answering("", status=302, Location="/progress"), "refused"),
        (answering(gzip.compress(b"{}" + b" " * 10_000_000), **{"Content-Encoding": "gzip"}), "refused"),
    ],
)
def test_any_other_answer_is_dropped_and_counted(answer, outcome):
    before = counted(outcome)
    assert hear(answer) == {}
    assert counted(outcome) == before + 1


def test_the_largest_report_that_is_allowed_is_heard():
    text = GOOD.model_dump_json()
    found = hear(answering(text + " " * (names.PROGRESS_BYTES - len(text.encode()))))
    assert found[POD.uid].report == GOOD


def test_an_endless_answer_is_cut_off():
    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(1000):
            await response.write(b" " * 1024)
        return response

    before = counted("too_long")
    assert hear(answer) == {}
    assert counted("too_long") == before + 1


def test_a_pod_that_does_not_answer_in_time_is_left():
    async def answer(_: web.Request) -> web.Response:
        await asyncio.sleep(2)
        return web.Response(text=GOOD.model_dump_json())

    before = counted("unreachable")
    assert hear(answer) == {}
    assert counted("unreachable") == before + 1


@pytest.mark.parametrize(
    "pod",
    [
        replace(POD, running=False),
        replace(POD, ip=None),
        replace(POD, host_network=True),
        replace(POD, job_uid="another Job"),
    ],
)
def test_only_a_running_pod_of_our_job_in_its_own_network_is_asked(pod):
    asked = []

    async def answer(request: web.Request) -> web.Response:
        asked.append(request)
        return web.Response(text=GOOD.model_dump_json())

    assert hear(answer, pod) == {}
    assert asked == []


def test_a_pod_is_asked_once_a_period_and_its_last_report_stays():
    async def story() -> None:
        asked = 0

        async def answer(_: web.Request) -> web.Response:
            nonlocal asked
            asked += 1
            warning = JobWarning(reason="Number", message=str(asked))
            return web.Response(text=GOOD.model_copy(update={"warnings": (warning,)}).model_dump_json())

        async with pod_server(answer) as poller:
            for seconds, times in ((0, 1), (1, 1), (7, 1), (10, 2), (12, 2)):
                found = await poller.hear(JOB_UID, CHILD.uid, (POD,), NOW + timedelta(seconds=seconds))
                assert asked == times
                assert found[POD.uid].report.warnings[0].message == str(times)
            ended = replace(POD, running=False, ended="x")
            found = await poller.hear(JOB_UID, CHILD.uid, (ended,), NOW + timedelta(seconds=60))
            assert (asked, found[POD.uid].report.warnings[0].message) == (2, "2")

    asyncio.run(story())
