"""/healthz that tells the truth: unhealthy when a job waits too long, the watch has ended, or it misses changes.

kopf's own endpoint answers 200 even when its watchers are dead; this one is what the kubelet asks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from finetune_api.names import HEALTH_PATH
from finetune_operator.metrics import LEADER, QUEUE_AGE, QUEUE_DEPTH, WATCH_BEHIND, WATCHES_MISSING
from finetune_operator.queue import WorkQueue
from finetune_operator.resync import Resync


@dataclass
class Health:
    """What may be wrong with the operator itself."""

    queue: WorkQueue
    resync: Resync
    missing_watches: Callable[[], Iterable[str]]
    """Resources that nobody watches at this moment."""
    stuck_after: float
    """Seconds."""
    clock: Callable[[], float]
    working: Callable[[], bool] = lambda: True
    """False while another process may have the lease: who stands by is healthy."""
    _missing_since: dict[str, float] = field(default_factory=dict)

    def problems(self) -> list[str]:
        """What has been wrong for too long, in sentences; empty = healthy."""
        if not self.working():
            return []
        found = [f"{what} is not watched" for what in self._long_missing()]
        if (age := self.queue.oldest_age()) > self.stuck_after:
            found.append(f"a job has waited {age:.0f} s for a worker")
        if (age := self.resync.longest_difference()) > self.stuck_after:
            found.append(f"the watch has missed a change for {age:.0f} s")
        return found

    def tell(self) -> None:
        """Set the gauges to what is so now."""
        working = self.working()
        LEADER.set(working)
        QUEUE_DEPTH.set(self.queue.depth())
        QUEUE_AGE.set(self.queue.oldest_age())
        WATCH_BEHIND.set(self.resync.longest_difference())
        WATCHES_MISSING.set(len(list(self.missing_watches())) if working else 0)

    def _long_missing(self) -> list[str]:
        now = self.clock()
        self._missing_since = {what: self._missing_since.get(what, now) for what in self.missing_watches()}
        return sorted(what for what, since in self._missing_since.items() if now - since > self.stuck_after)


async def serve(health: Health, port: int, tell: Callable[[], None] = lambda: None) -> web.AppRunner:
    """Serve /healthz and /metrics on all addresses. The caller cleans the runner up.

    Args:
        tell: sets more gauges before they are read.
    """

    async def healthz(_: web.Request) -> web.Response:
        problems = health.problems()
        return web.json_response({"healthy": not problems, "problems": problems}, status=503 if problems else 200)

    async def metrics(_: web.Request) -> web.Response:
        health.tell()
        tell()
        return web.Response(body=generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    application = web.Application()
    application.add_routes([web.get(HEALTH_PATH, healthz), web.get("/metrics", metrics)])
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, port=port).start()
    return runner
