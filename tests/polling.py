"""A poller at work on pods that answer as a test says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from aiohttp import web

from builders import JOB_UID, make_child, make_job, make_pod, make_progress, report_for
from finetune_api import names
from finetune_api.report import Report
from finetune_api.trainer import Stage
from finetune_operator.pace import Pace
from finetune_operator.plan.state import Pod
from finetune_operator.poll import Poller, Told, open_session
from finetune_operator.queue import Key
from finetune_operator.settings import Settings

KEY = ("team", "tune")
CHILD = make_child(make_job(), Stage.TRAIN)
POD = make_pod(CHILD, ip="127.0.0.1")
GOOD = report_for(POD, Stage.TRAIN, progress=make_progress(7))
SETTINGS = Settings(poll_period_seconds=0.1, poll_timeout_seconds=0.5, progress_stale_seconds=0.1)
Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class Asking:
    """A poller at work, and what it has done."""

    poller: Poller
    pace: Pace
    woken: list[Key]
    """Jobs with news that cannot wait."""

    def follow(self, *pods: Pod, key: Key = KEY) -> Told:
        return self.poller.follow(key, JOB_UID, pods or (POD,))

    async def until(self, condition: Callable[[], Any], seconds: float = 5.0) -> Any:
        async with asyncio.timeout(seconds):
            while not (value := condition()):
                await asyncio.sleep(0.002)
        return value


@asynccontextmanager
async def asking(answer: Answer, settings: Settings = SETTINGS) -> AsyncIterator[Asking]:
    """A poller whose pods, at whatever address of loopback, answer as `answer` says."""
    application = web.Application()
    application.router.add_get(names.PROGRESS_PATH, answer)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "0.0.0.0", 0).start()
    woken: list[Key] = []

    async def wake(key: Key) -> None:
        woken.append(key)

    async with open_session() as session:
        pace = Pace(wake, 10, asyncio.get_running_loop().time)
        poller = Poller(session, pace, wake, settings, lambda: datetime.now(UTC), port=runner.addresses[0][1])
        task = asyncio.create_task(poller.run())
        try:
            yield Asking(poller, pace, woken)
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            await runner.cleanup()


def answering(body: str | bytes | Report, status: int = 200, **headers: str) -> Answer:
    raw = body.model_dump_json() if isinstance(body, Report) else body

    async def answer(_: web.Request) -> web.Response:
        return web.Response(body=raw.encode() if isinstance(raw, str) else raw, status=status, headers=headers)

    return answer
