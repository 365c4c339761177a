"""kopf, and nothing but kopf: it watches four kinds of objects, and each event only puts a job's key on the queue.

No handler of ours keeps state in objects: kopf writes no annotation and no finalizer.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Any

import kopf

from finetune_api import names
from finetune_operator.client import Cluster
from finetune_operator.joblog import AboutJob
from finetune_operator.metrics import LAST_EVENT
from finetune_operator.observe import Departed
from finetune_operator.queue import WorkQueue
from finetune_operator.roster import Roster, key_of
from finetune_operator.settings import Settings

LOG = logging.getLogger(__name__)
Handler = Callable[..., Coroutine[Any, Any, None]]
OURS = f"{names.MANAGED_BY_LABEL}={names.MANAGED_BY}"
CHILD_SECONDS = 0.2
LISTED_SECONDS = 3.0
"""The same for children that a list tells of when a watch begins anew: most have no news, and a server that refuses
watches for a while would have every job looked at as often as it is asked."""
NAMESPACED = (names.JOB_PLURAL, "jobs", "pods")
LOGIN_PAUSE_SECONDS = 2.0
LAST_SECONDS = 10.0
"""How long kopf may take to end after everything beside it has."""


class Backoffs:
    """Seconds between the attempts of one request, without end: a watcher whose request gives up never comes back."""

    def __iter__(self) -> Iterator[float]:
        return itertools.chain((1, 1, 2, 3, 5, 8, 13), itertools.repeat(20))


@dataclass(frozen=True, slots=True)
class Watch:
    """What the handlers feed."""

    cluster: Cluster
    queue: WorkQueue
    roster: Roster
    departed: Departed
    logins: Iterator[int] = field(default_factory=itertools.count)

    async def job_event(self, event: Any, **_: Any) -> None:
        """A FineTuneJob: it, and those that wait for its checkpoints."""
        manifest = event["object"]
        key = key_of(manifest)
        if event["type"] == "DELETED":
            self.roster.gone(key, manifest["metadata"]["uid"])
            await self.queue.add(key)
        elif self.roster.saw(manifest):
            if event["type"] is not None:  # None = listed when the watch began
                self.roster.news(manifest)
            await self.queue.add(key)
        for waiting in self.roster.waiting_for(key):
            await self.queue.add(waiting)

    async def runtime_event(self, **_: Any) -> None:
        """A FineTuneRuntime: every job that has not started may have waited for it."""
        for key in self.roster.waiting():
            await self.queue.add(key)

    async def child_event(self, event: Any, **_: Any) -> None:
        """A Job or pod of ours: the job that it belongs to. The last event of a pod is kept."""
        metadata = event["object"]["metadata"]
        name = metadata.get("labels", {}).get(names.JOB_NAME_LABEL)
        if event["type"] == "DELETED" and event["object"].get("kind") == "Pod":
            self.departed.remember(event["object"])
        if name:
            # A child tells of itself several times in a row: one look takes in all of it.
            seconds = LISTED_SECONDS if event["type"] is None else CHILD_SECONDS
            await self.queue.add_after((metadata["namespace"], name), seconds)

    async def login(self, **_: Any) -> kopf.ConnectionInfo:
        """The same credentials as the client's, read again each time that the API server has refused the last ones.

        kopf takes no credentials twice and its watchers die without; but a token may be refused only for a while: its
        file is about to be renewed, or the API server has just started. So each login has a number of its own.
        """
        number = next(self.logins)
        if number:
            await asyncio.sleep(LOGIN_PAUSE_SECONDS)
        found = await self.cluster.credentials()
        scheme, _space, token = (found.authorization or "").rpartition(" ")
        return kopf.ConnectionInfo(
            server=found.server,
            ca_path=found.ca_file,
            insecure=not found.verify,
            scheme=scheme.capitalize() or None,
            token=token or None,
            certificate_path=found.certificate_file,
            private_key_path=found.key_file,
            priority=number,
        )


async def run(
    watch: Watch, settings: Settings, stopping: asyncio.Event, stop: Callable[[], Coroutine[Any, Any, None]]
) -> None:
    """Watch until SIGTERM, SIGINT or `stopping`; `stop` is awaited then, to end what else runs in this event loop."""

    deadline: list[asyncio.TimerHandle] = []

    async def cleanup(**_: Any) -> None:
        # kopf waits for tasks that it finds running beside its own, and only then returns.
        await stop()
        deadline.append(asyncio.get_running_loop().call_later(LAST_SECONDS, _end))

    registry = _registry(watch)
    kopf.on.cleanup(registry=registry)(cleanup)
    try:
        await kopf.operator(
            registry=registry,
            settings=_engine_settings(),
            stop_flag=stopping,
            standalone=True,
            clusterwide=not settings.namespaces,
            namespaces=settings.namespaces,
        )
    finally:
        for timer in deadline:
            timer.cancel()


def _end() -> None:
    """End the process: after a watcher has failed, kopf may wait for ever for others that it has itself broken off,
    and an operator that neither watches nor works must not stay until its health is noticed."""
    LOG.critical("the watch has ended but kopf has not, so this process ends")
    logging.shutdown()
    os._exit(1)


def missing_watches(namespaces: tuple[str, ...]) -> list[str]:
    """Resources without a living watcher task of kopf's in this event loop."""
    alive = {task.get_name() for task in asyncio.all_tasks() if not task.done()}
    wanted: list[tuple[str, str | None]] = [(names.RUNTIME_PLURAL, None)]
    wanted += [(plural, namespace) for plural in NAMESPACED for namespace in namespaces or (None,)]
    return [
        f"{plural} in {namespace}" if namespace else plural
        for plural, namespace in wanted
        if not any(task.startswith(f"watcher for {plural}.") and task.endswith(f"@{namespace}") for task in alive)
    ]


def configure_logging(*, as_json: bool) -> None:
    """One format for all lines, kopf's among them."""
    kopf.configure(log_format=kopf.LogFormat.JSON if as_json else kopf.LogFormat.FULL)
    for handler in logging.getLogger().handlers:
        handler.addFilter(AboutJob())
    # kopf tells of each handled event; ours only put a key on the queue.
    logging.getLogger("kopf.objects").setLevel(logging.WARNING)


def _registry(watch: Watch) -> kopf.OperatorRegistry:
    registry = kopf.OperatorRegistry()
    kopf.on.login(registry=registry)(watch.login)
    for group, version, plural, handler in (
        (names.GROUP, names.VERSION, names.JOB_PLURAL, watch.job_event),
        (names.GROUP, names.VERSION, names.RUNTIME_PLURAL, watch.runtime_event),
        ("batch", "v1", "jobs", watch.child_event),
        ("", "v1", "pods", watch.child_event),
    ):
        kopf.on.event(group, version, plural, id=plural, registry=registry)(_timed(plural, handler))
    return registry


def _timed(plural: str, handler: Handler) -> Handler:
    """The handler, noting when the watch has told something."""

    async def handle(**event: Any) -> None:
        LAST_EVENT.labels(plural).set_to_current_time()
        await handler(**event)

    return handle


class _NoProgress(kopf.ProgressStorage):
    """Keeps nothing about handlers, in objects or elsewhere."""

    def fetch(self, **_: Any) -> None:
        """There is nothing."""

    def store(self, **_: Any) -> None:
        """Keep nothing."""

    def purge(self, **_: Any) -> None:
        """There is nothing."""

    def touch(self, **_: Any) -> None:
        """Leave the object alone."""

    def clear(self, *, essence: Any) -> Any:
        """Nothing of it is ours."""
        return essence


class _NoDifference(kopf.DiffBaseStorage):
    """Compares nothing: kopf would copy each object of each event several times for handlers that we do not have."""

    def build(self, **_: Any) -> Any:
        """What is compared of an object."""
        return {}

    def fetch(self, **_: Any) -> None:
        """There is nothing."""

    def store(self, **_: Any) -> None:
        """Keep nothing."""


def _engine_settings() -> kopf.OperatorSettings:
    settings = kopf.OperatorSettings()
    # No right to list CRDs and namespaces is wanted: kinds are looked up once, and /healthz notices a missing one.
    settings.scanning.disabled = True
    settings.posting.enabled = False
    settings.watching.server_timeout = 600
    settings.watching.inactivity_timeout = 70
    # A watch that the server refuses again and again is asked for twice a second, with a list each time, not ten times.
    settings.watching.reconnect_backoff = 0.5
    # A page of jobs is parsed whole: of full statuses 35 kB as JSON, several times that as objects.
    settings.watching.chunk_size = 100
    # A handler only puts a key on the queue, so that nothing needs time to finish when the operator ends.
    settings.queueing.idle_timeout = 1.0
    settings.queueing.exit_timeout = 0.1
    settings.networking.connect_timeout = 10
    settings.networking.request_timeout = 60
    settings.networking.error_backoffs = Backoffs()
    settings.watching.label_selectors["batch/v1", "jobs"] = OURS
    settings.watching.label_selectors["v1", "pods"] = OURS
    # Never used, because no handler keeps state; ours all the same, should kopf ever write one.
    settings.persistence.finalizer = f"{names.GROUP}/unused"
    settings.persistence.progress_storage = _NoProgress()
    settings.persistence.diffbase_storage = _NoDifference()
    return settings
