"""Progress is pulled: the operator asks each running pod, and believes only what a pod of ours says of this very job.

A training pod runs code and data of users, so its answer is bounded in time and size, follows no redirect, and must
satisfy the schema to the letter. What does not is dropped and counted. Asking is a loop of its own beside the looks:
a look only says which pods there are, and takes what was heard; it never waits for a pod. A pod that gave no answer
is asked among its like from then on, so that pods that hang delay each other and nobody else.

What was heard may still be lost with the operator, and the pod with all it knows. So a pod that has finished stays
until it hears that its last report stands in the status: the question after that write says so.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import logging
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import Enum, auto

import aiohttp
from pydantic import ValidationError

from finetune_api import names
from finetune_api.report import Report
from finetune_operator.metrics import REPORTS
from finetune_operator.pace import Pace
from finetune_operator.plan.news import HEARTBEAT, urgent_part
from finetune_operator.plan.reading import read_report
from finetune_operator.plan.state import Fault, Heard, Pod, Silence, timestamp
from finetune_operator.queue import Key
from finetune_operator.settings import Settings

LOG = logging.getLogger(__name__)
LATELY_PERIODS = 3
LEAVING_SECONDS = 1.0
"""Period for a pod that is being deleted: its end, and so its job's, waits for us."""


@dataclass(frozen=True, slots=True)
class Told:
    """What a job's pods have said, by pod uid."""

    reports: dict[str, Heard] = field(default_factory=dict)
    """The newest report of each."""
    silences: dict[str, Silence] = field(default_factory=dict)
    """Running pods whose newest answer was no report."""


class _Last(Enum):
    """What has become of a pod's last report."""

    UNSAID = auto()
    SAID = auto()
    TAKEN = auto()
    """The newest look has it."""
    RECORDED = auto()
    """It stands in the status."""


@dataclass(slots=True)
class _Line:
    """The line to one pod."""

    key: Key
    job_uid: str
    pod: Pod
    since: datetime
    """When it was first to be asked, or gave its newest report."""
    body: bytes | None = None
    """Its newest report as it was sent: parsed again when it is wanted, because that is seldom and bytes are small."""
    urgent: bytes = b""
    """Digest of the part of that report that cannot wait."""
    fault: Fault | None = None
    """What was wrong with the newest answer."""
    told: datetime | None = None
    """`since` when its job was last woken for it."""
    stale: bool = False
    """Its job was woken because it has been silent for too long."""
    last: _Last = _Last.UNSAID
    hurried: bool = False
    """It was told at once that its last report is recorded: one that then says something else waits its turn."""
    due: float | None = None
    """When it is asked next."""
    asking: bool = False
    closed: bool = False


class Poller:
    """Asks the pods that it was told of for their progress, each once a period, a bounded number at the same time."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        pace: Pace,
        wake: Callable[[Key], Awaitable[None]],
        settings: Settings,
        clock: Callable[[], datetime],
        port: int = names.PROGRESS_PORT,
    ) -> None:
        """`wake` is called for a job with news that cannot wait; progress alone is left to `pace`."""
        self._session, self._pace, self._wake, self._clock, self._port = session, pace, wake, clock, port
        self._period = settings.poll_period_seconds
        self._patience = timedelta(seconds=settings.patience_seconds)
        self._timeout = aiohttp.ClientTimeout(total=settings.poll_timeout_seconds)
        self._lanes = {answered: asyncio.Semaphore(settings.concurrent_polls) for answered in (True, False)}
        self._lines: dict[Key, dict[str, _Line]] = {}
        self._due: list[tuple[float, int, _Line]] = []
        self._order = itertools.count()
        self._more = asyncio.Event()

    def follow(self, key: Key, job_uid: str, pods: Iterable[Pod]) -> Told:
        """Ask these pods of the job from now on, and no others; returns what was heard.

        Args:
            pods: those that our own Jobs control. One that does not run is not asked, but what it said is kept.
        """
        before, lines, now = self._lines.get(key, {}), {}, asyncio.get_running_loop().time()
        for pod in pods:
            line = lines[pod.uid] = before.get(pod.uid) or _Line(key, job_uid, pod, self._clock())
            line.pod, line.last = pod, _Last.TAKEN if line.last is _Last.SAID else line.last
            if _askable(pod) and line.due is None and not line.asking:
                if line.body is None:  # the wait for a node or an image was no silence
                    line.since, line.stale = self._clock(), False
                self._schedule(line, now)
            elif line.due is not None:
                self._schedule(line, now + self._period_of(line))
        for uid in before.keys() - lines.keys():
            before[uid].closed = True
        self._lines[key] = lines
        return Told(
            {uid: _heard(line.body, line.since) for uid, line in lines.items() if line.body is not None},
            {uid: Silence(timestamp(line.since), line.fault, line.stale) for uid, line in lines.items() if line.fault},
        )

    def recorded(self, key: Key) -> None:
        """What the newest look at the job took is in its status: a pod that waits for that is told at once."""
        for line in self._lines.get(key, {}).values():
            if line.last is _Last.TAKEN:
                line.last = _Last.RECORDED
                if not line.hurried and _wanted(line):
                    line.hurried = True
                    self._schedule(line, asyncio.get_running_loop().time())

    def forget(self, key: Key) -> None:
        """The job is final or gone."""
        for line in self._lines.pop(key, {}).values():
            line.closed = True

    def hears(self, key: Key) -> bool:
        """Whether every pod of the job that can be asked has given a report lately."""
        lines = [line for line in self._lines.get(key, {}).values() if _askable(line.pod)]
        lately = self._clock() - timedelta(seconds=LATELY_PERIODS * self._period)
        return bool(lines) and all(line.body and line.fault is None and line.since >= lately for line in lines)

    async def run(self) -> None:
        """Ask until cancelled."""
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as group:
            while True:
                self._more.clear()
                while self._due and self._due[0][0] <= loop.time():
                    moment, _, line = heapq.heappop(self._due)
                    if line.due == moment:  # else it was asked for sooner
                        line.due, line.asking = None, True
                        group.create_task(self._turn(line))
                # Not wait_for: until Python 3.12 it may take a cancellation for the end of its time.
                with suppress(TimeoutError):
                    async with asyncio.timeout_at(self._due[0][0] if self._due else None):
                        await self._more.wait()

    async def _turn(self, line: _Line) -> None:
        """Ask one pod, and put it down for its next turn."""
        loop = asyncio.get_running_loop()
        begun = loop.time()
        outcome: BaseException | None = None
        async with self._lanes[line.fault is None]:
            if _wanted(line):
                # Whatever a pod's answer makes us raise is its own matter: neither the operator's nor other pods'.
                (outcome,) = await asyncio.gather(self._ask(line), return_exceptions=True)
        line.asking = False
        if isinstance(outcome, asyncio.CancelledError):
            raise outcome
        if isinstance(outcome, BaseException):
            LOG.error("%s/%s: asking pod %s failed", *line.key, line.pod.name, exc_info=outcome)
        if _wanted(line):
            self._schedule(line, max(begun + self._period_of(line), loop.time()))

    def _period_of(self, line: _Line) -> float:
        return min(self._period, LEAVING_SECONDS) if line.pod.leaving else self._period

    def _schedule(self, line: _Line, moment: float) -> None:
        """Put the pod down for a turn, unless one comes before that."""
        if line.due is None or moment < line.due:
            line.due = moment
            heapq.heappush(self._due, (moment, next(self._order), line))
            self._more.set()

    async def _ask(self, line: _Line) -> None:
        answer = await self._fetch(line)
        report = _judged(answer, line) if isinstance(answer, bytes) else None
        fault = answer if isinstance(answer, Fault) else report if isinstance(report, Fault) else None
        REPORTS.labels(fault.value if fault else "taken").inc()
        if line.closed:
            return
        line.fault = fault
        if fault is not None:
            await self._silent(line)
        elif isinstance(answer, bytes):
            await self._spoke(line, answer, report if isinstance(report, Report) else None)

    async def _spoke(self, line: _Line, body: bytes, report: Report | None) -> None:
        """Keep a report, and see that its job is looked at if it says anything new.

        Args:
            report: None = the same to the letter as before.
        """
        line.since, line.body = self._clock(), body
        if report is not None:
            line.last = _Last.SAID if report.finished else _Last.UNSAID
        urgent = urgent_part(report) if report is not None else line.urgent
        at_once = urgent != line.urgent or line.stale
        line.urgent, line.stale = urgent, False
        if at_once:
            line.told = line.since
            await self._wake(line.key)
        elif report is not None or line.told is None or line.since - line.told > HEARTBEAT:
            line.told = line.since
            self._pace.wants(line.key)

    async def _silent(self, line: _Line) -> None:
        """Wake the job, once, when the pod has given no report for too long."""
        if not line.stale and self._clock() - line.since >= self._patience:
            line.stale = True
            await self._wake(line.key)

    async def _fetch(self, line: _Line) -> bytes | Fault:
        """The body of the answer, or why there is none."""
        ip = line.pod.ip or ""
        url = f"http://{f'[{ip}]' if ':' in ip else ip}:{self._port}{names.PROGRESS_PATH}"
        headers = {names.PROGRESS_HEADER: line.job_uid, "Accept-Encoding": "identity"}
        if line.last is _Last.RECORDED:
            headers[names.RECORDED_HEADER] = line.pod.uid
        try:
            async with self._session.get(
                url, headers=headers, timeout=self._timeout, allow_redirects=False
            ) as response:
                if response.status != 200 or response.headers.get("Content-Encoding", "identity") != "identity":
                    return Fault.REFUSED
                return await _bounded(response.content)
        except (aiohttp.ClientPayloadError, aiohttp.ClientResponseError):
            return Fault.MALFORMED
        except (TimeoutError, aiohttp.ClientError):
            return Fault.UNREACHABLE


def open_session() -> aiohttp.ClientSession:
    """The connections to pods: a matter between their address and us. No proxy, no cookies, no decompression.

    The number of connections is the poller's to bound; each is used once, because an address may change hands.
    """
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    jar = aiohttp.DummyCookieJar()
    return aiohttp.ClientSession(connector=connector, trust_env=False, auto_decompress=False, cookie_jar=jar)


async def _bounded(content: aiohttp.StreamReader) -> bytes | Fault:
    """All of the body, unless it is longer than a report may be."""
    body = bytearray()
    while chunk := await content.read(names.PROGRESS_BYTES + 1 - len(body)):
        body += chunk
        if len(body) > names.PROGRESS_BYTES:
            return Fault.TOO_LONG
    return bytes(body)


def _judged(body: bytes, line: _Line) -> Report | Fault | None:
    """The report, if it is one of that pod about that job; None = the same as before."""
    if body == line.body:
        return None
    try:
        report = read_report(body)
    except ValidationError:
        return Fault.MALFORMED
    about_us = report.job_uid == line.job_uid and report.pod_uid == line.pod.uid
    return report if about_us else Fault.FOREIGN


def _wanted(line: _Line) -> bool:
    return not line.closed and _askable(line.pod)


def _askable(pod: Pod) -> bool:
    """Only a pod whose trainer runs, in a network of its own, so that its address is its own."""
    return (pod.running or pod.leaving) and pod.leads and pod.ip is not None and not pod.host_network


def _heard(body: bytes, since: datetime) -> Heard:
    return Heard(read_report(body), timestamp(since))
