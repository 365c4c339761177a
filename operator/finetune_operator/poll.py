"""Progress is pulled: the operator asks each running pod, and believes only what a pod of ours says of this very job.

A training pod runs code and data of users, so its answer is bounded in time and size, follows no redirect, and must
satisfy the schema to the letter. What does not is dropped and counted.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import TypeVar

import aiohttp
from pydantic import ValidationError

from finetune_api import names
from finetune_api.report import Report
from finetune_operator.metrics import REPORTS
from finetune_operator.plan.state import Heard, Pod, timestamp
from finetune_operator.settings import Settings

V = TypeVar("V")
REMEMBERED = 4096
"""Pods whose last report is kept: it is wanted once more when the pod ends."""


class Poller:
    """Asks pods for their progress, each at most once a period, a bounded number at the same time."""

    def __init__(self, session: aiohttp.ClientSession, settings: Settings, port: int = names.PROGRESS_PORT) -> None:
        self._session = session
        self._port = port
        # A look comes at the period; a little earlier still counts, or every second look would ask nothing.
        self._period = timedelta(seconds=0.8 * settings.poll_period_seconds)
        self._timeout = aiohttp.ClientTimeout(total=settings.poll_timeout_seconds)
        self._slots = asyncio.Semaphore(settings.concurrent_polls)
        self._heard: OrderedDict[str, Heard] = OrderedDict()
        self._asked: OrderedDict[str, datetime] = OrderedDict()

    async def hear(self, job_uid: str, child_uid: str, pods: Iterable[Pod], now: datetime) -> dict[str, Heard]:
        """The newest report of each pod, by pod uid; those that run and are due are asked first.

        Args:
            child_uid: uid of our Job; a pod that another controls is never asked.
        """
        pods = [pod for pod in pods if pod.job_uid == child_uid]
        await asyncio.gather(*(self._ask(job_uid, pod, now) for pod in pods if self._is_due(pod, now)))
        return {pod.uid: self._heard[pod.uid] for pod in pods if pod.uid in self._heard}

    def _is_due(self, pod: Pod, now: datetime) -> bool:
        if not pod.running or pod.ip is None or pod.host_network:
            return False
        asked = self._asked.get(pod.uid)
        return asked is None or now - asked >= self._period

    async def _ask(self, job_uid: str, pod: Pod, now: datetime) -> None:
        _remember(self._asked, pod.uid, now)
        async with self._slots:
            body = await self._fetch(job_uid, pod)
        if body is None:
            return
        try:
            report = Report.model_validate_json(body)
        except ValidationError:
            REPORTS.labels("malformed").inc()
            return
        if report.job_uid != job_uid or report.pod_uid != pod.uid:
            REPORTS.labels("foreign").inc()
            return
        REPORTS.labels("taken").inc()
        _remember(self._heard, pod.uid, Heard(report, timestamp(now)))

    async def _fetch(self, job_uid: str, pod: Pod) -> bytes | None:
        """The body of the answer; None if there is none, or it is too long."""
        host = f"[{pod.ip}]" if ":" in (pod.ip or "") else pod.ip
        url = f"http://{host}:{self._port}{names.PROGRESS_PATH}"
        headers = {names.PROGRESS_HEADER: job_uid, "Accept-Encoding": "identity"}
        try:
            async with self._session.get(
                url, headers=headers, timeout=self._timeout, allow_redirects=False
            ) as response:
                if response.status != 200 or response.headers.get("Content-Encoding", "identity") != "identity":
                    REPORTS.labels("refused").inc()
                    return None
                body = await _bounded(response.content)
        except (TimeoutError, aiohttp.ClientError):
            REPORTS.labels("unreachable").inc()
            return None
        if body is None:
            REPORTS.labels("too_long").inc()
        return body


async def _bounded(content: aiohttp.StreamReader) -> bytes | None:
    """All of the body, or None as soon as it is longer than a report may be."""
    body = bytearray()
    while chunk := await content.read(names.PROGRESS_BYTES + 1 - len(body)):
        body += chunk
        if len(body) > names.PROGRESS_BYTES:
            return None
    return bytes(body)


def _remember(store: OrderedDict[str, V], key: str, value: V) -> None:
    """Keep the newest, forget the oldest beyond the bound."""
    store[key] = value
    store.move_to_end(key)
    while len(store) > REMEMBERED:
        store.popitem(last=False)
