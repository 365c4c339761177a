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
    listeners: list[Callable[[Happened], None]] = field(default_factory=list)
    _latest: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    _news: dict[str, asyncio.Event] = field(default_factory=lambda: defaultdict(asyncio.Event))

    def saw(self, kind: str, event: Manifest) -> None:
        """Note an event."""
        assert event["type"] != "ERROR", event
        happened = Happened(kind, event["type"], event["object"])
        self.events[happened.job].append(happened)
        self._latest[kind] = int(event["object"]["metadata"]["resourceVersion"])
        for listener in self.listeners:
            listener(happened)
        # A change of one job's objects is news for who waits for it; who waits for a version looks at each.
        self._news[happened.job].set()

    def now(self, job: str, kind: str) -> dict[str, Manifest]:
        """The objects of that kind that belong to a job, by name, as last told."""
        there: dict[str, Manifest] = {}
        for event in self.events[job]:
            if event.kind == kind and event.type == "DELETED":
                there.pop(event.object["metadata"]["name"], None)
            elif event.kind == kind:
                there[event.object["metadata"]["name"]] = event.object
        return there

    async def until(self, job: str, condition: Callable[[], Any], what: str, seconds: float = 60.0) -> None:
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
        version, name = int(written["metadata"]["resourceVersion"]), written["metadata"]["name"]

        def told() -> bool:
            versions = [e.object["metadata"] for e in self.events[job] if e.object["metadata"]["name"] == name]
            return any(int(m["resourceVersion"]) >= version for m in versions)

        await self.until(job, told, f"version {version} of {name}")


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
            async with session.get(path) as answer:
                version = (await answer.json())["metadata"]["resourceVersion"]
            tasks.append(asyncio.create_task(_watch(session, f"{path}?watch=1&resourceVersion={version}", kind, made)))
        try:
            yield made
        finally:
            for task in tasks:
                task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
            broken = [e for e in ended if isinstance(e, Exception)]
            assert not broken, broken


async def _watch(session: aiohttp.ClientSession, path: str, kind: str, history: History) -> None:
    async with session.get(path) as response:
        rest = b""
        async for chunk in response.content.iter_any():
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                history.saw(kind, json.loads(line))
