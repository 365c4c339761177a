"""What happened in a namespace, from the API server's own watches: every version of every object, in order."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from apiserver import ADMIN_TOKEN, ControlPlane
from finetune_api.names import JOB_NAME_LABEL

Manifest = dict[str, Any]
KINDS = {
    "finetunejobs": "/apis/finetune.dev/v1alpha1",
    "jobs": "/apis/batch/v1",
    "pods": "/api/v1",
    "networkpolicies": "/apis/networking.k8s.io/v1",
}


@dataclass(frozen=True, slots=True)
class Happened:
    """One event of a watch."""

    kind: str
    type: str
    """ADDED, MODIFIED or DELETED."""
    object: Manifest

    @property
    def job(self) -> str:
        """The name of the FineTuneJob that it is about."""
        metadata = self.object["metadata"]
        return str(metadata["name"] if self.kind == "finetunejobs" else metadata["labels"].get(JOB_NAME_LABEL, ""))


@dataclass
class History:
    """All that has happened since the watches began, by FineTuneJob."""

    events: dict[str, list[Happened]] = field(default_factory=lambda: defaultdict(list))
    listeners: dict[str, Callable[[Happened], None]] = field(default_factory=dict)
    """Who is told of each event, by FineTuneJob."""
    _there: dict[tuple[str, str], dict[str, Manifest]] = field(default_factory=lambda: defaultdict(dict))
    _versions: dict[tuple[str, str, str], int] = field(default_factory=lambda: defaultdict(int))
    """The newest, by job, kind and name; of deleted objects too."""
    _news: dict[str, asyncio.Event] = field(default_factory=lambda: defaultdict(asyncio.Event))

    def saw(self, kind: str, event: Manifest) -> None:
        """Note an event."""
        assert event["type"] != "ERROR", event
        happened = Happened(kind, event["type"], event["object"])
        job, metadata = happened.job, happened.object["metadata"]
        self.events[job].append(happened)
        self._versions[job, kind, metadata["name"]] = int(metadata["resourceVersion"])
        if happened.type == "DELETED":
            self._there[job, kind].pop(metadata["name"], None)
        else:
            self._there[job, kind][metadata["name"]] = happened.object
        if job in self.listeners:
            self.listeners[job](happened)
        self._news[job].set()

    def now(self, job: str, kind: str) -> dict[str, Manifest]:
        """The objects of that kind that belong to a job, by name, as last told."""
        return self._there[job, kind]

    async def until(self, job: str, condition: Callable[[], Any], what: str, seconds: float = 240.0) -> None:
        """Wait until a condition on that job's objects holds.

        Raises:
            AssertionError: it did not in time.
        """
        try:
            async with asyncio.timeout(seconds):
                while not condition():
                    self._news[job].clear()
                    await self._news[job].wait()
        except TimeoutError:
            raise AssertionError(f"{job}: waited {seconds:g} s for {what}") from None

    async def reached(self, job: str, written: Manifest) -> None:
        """Wait until an object that was written has been told of."""
        metadata, word = written["metadata"], written["kind"].lower()
        kind = next(plural for plural in KINDS if plural in (f"{word}s", f"{word[:-1]}ies"))
        key = (job, kind, metadata["name"])
        what = f"version {metadata['resourceVersion']} of {kind} {metadata['name']}"
        await self.until(job, lambda: self._versions[key] >= int(metadata["resourceVersion"]), what)


@asynccontextmanager
async def history(plane: ControlPlane, namespace: str) -> AsyncIterator[History]:
    """Watch a namespace, from now on."""
    authority = ssl.create_default_context(cafile=str(plane.folder / "pki" / "apiserver.crt"))
    headers = {"Authorization": f"Bearer {ADMIN_TOKEN}"}
    connector = aiohttp.TCPConnector(ssl=authority)
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(
        f"https://127.0.0.1:{plane.port}", headers=headers, connector=connector, timeout=timeout
    ) as session:
        made = History()
        tasks = []
        for kind, group in KINDS.items():
            path = f"{group}/namespaces/{namespace}/{kind}"
            version = await _version(session, path)
            tasks.append(asyncio.create_task(_watch(session, path, version, kind, made)))
        try:
            yield made
        finally:
            for task in tasks:
                task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
            broken = [e for e in ended if isinstance(e, Exception)]
            assert not broken, broken


async def _version(session: aiohttp.ClientSession, path: str) -> str:
    """That of a collection now. Of a kind that has just been installed the API server may say to ask again."""
    async with asyncio.timeout(30):
        while True:
            async with session.get(path) as answer:
                listed = await answer.json()
            if answer.status == 200:
                return str(listed["metadata"]["resourceVersion"])
            await asyncio.sleep(0.1)


async def _watch(session: aiohttp.ClientSession, path: str, version: str, kind: str, history: History) -> None:
    """Watch without end; the server closes the watch of a reader that is too slow, which then goes on from there."""
    while True:
        async with session.get(path, params={"watch": "1", "resourceVersion": version}) as response:
            rest = b""
            async for chunk in response.content.iter_any():
                *lines, rest = (rest + chunk).split(b"\n")
                for event in map(json.loads, lines):
                    history.saw(kind, event)
                    version = event["object"]["metadata"]["resourceVersion"]
