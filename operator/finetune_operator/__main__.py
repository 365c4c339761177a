"""Start the operator: read the environment, connect, and run watch, queue, resync, poller and health side by side."""

from __future__ import annotations

import argparse
import asyncio
import functools
import logging
import os
import signal
import socket
import sys
import time
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from finetune_operator import handlers
from finetune_operator.announce import Announcer
from finetune_operator.census import Census
from finetune_operator.client import IN_CLUSTER, Cluster, NoCluster
from finetune_operator.first_runtime import ensure_default_runtime
from finetune_operator.health import Health, serve
from finetune_operator.leader import Leader, LeaseLost
from finetune_operator.observe import Departed
from finetune_operator.pace import Pace
from finetune_operator.plan.invalid import sentences
from finetune_operator.poll import Poller, open_session
from finetune_operator.queue import Key, RetryLater, Work, WorkQueue
from finetune_operator.reconcile import Reconciler
from finetune_operator.resync import Resync
from finetune_operator.roster import Roster
from finetune_operator.settings import LeaderElection, Settings
from finetune_operator.shared import Shared

LOG = logging.getLogger(__name__)


def main() -> None:
    """The command `finetune-operator`, also `python -m finetune_operator`."""
    arguments = _arguments()
    try:
        settings = load_settings(arguments.settings, arguments.namespace)
    except (OSError, YAMLError) as error:
        sys.exit(f"settings {arguments.settings}: {error}")
    except ValidationError as error:
        sys.exit(f"settings {arguments.settings}: {sentences(error)}")
    handlers.configure_logging(as_json=arguments.log_format == "json")
    try:
        asyncio.run(run(settings, arguments.kubeconfig))
    except NoCluster as error:
        sys.exit(str(error))


def load_settings(path: str | None, namespaces: list[str] | None = None) -> Settings:
    """The settings of a YAML file; namespaces of the command line win.

    Raises:
        OSError, YAMLError: the file cannot be read.
        pydantic.ValidationError: it says what it may not.
    """
    values = YAML(typ="safe").load(Path(path).read_text(encoding="utf-8")) if path else None
    given = {} if values is None else values
    settings = Settings.model_validate(given)
    return Settings.model_validate({**given, "namespaces": namespaces}) if namespaces else settings


async def run(settings: Settings, kubeconfig: str | None) -> None:
    """Run until SIGTERM; a part that fails ends the whole. With an election, stand by until the lease is ours."""
    cluster = await Cluster.connect(kubeconfig, in_cluster=Path(IN_CLUSTER).exists())
    parts = Parts.of(cluster, settings)
    leader = _candidate(settings.leader_election, cluster)
    if leader is not None:
        parts.health.working = leader.leads
    try:
        runner = await serve(parts.health, settings.health_port, parts.census.tell)
    except OSError as error:
        await cluster.close()
        sys.exit(f"healthPort {settings.health_port} cannot be served: {error.strerror}; choose another")
    stopping = asyncio.Event()
    for each in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(each, stopping.set)
    try:
        if leader is not None:
            await _elected(leader, stopping)
        if stopping.is_set():
            return
        await _work(parts, settings, leader, stopping)
        if leader is not None:
            await leader.release()
    finally:
        await runner.cleanup()
        await cluster.close()


@dataclass(frozen=True, slots=True)
class Parts:
    """What is there from the beginning, at work or standing by."""

    cluster: Cluster
    queue: WorkQueue
    census: Census
    roster: Roster
    departed: Departed
    resync: Resync
    health: Health

    @classmethod
    def of(cls, cluster: Cluster, settings: Settings) -> Parts:
        """All of them, on the clock of this machine."""
        queue, census = WorkQueue(time.monotonic), Census(time.monotonic, _now)
        roster = Roster(census)
        resync = Resync(cluster, queue, roster, settings, time.monotonic)
        missing = functools.partial(handlers.missing_watches, settings.namespaces)
        health = Health(queue, resync, missing, settings.stuck_after_seconds, time.monotonic)
        return cls(cluster, queue, census, roster, Departed(), resync, health)


async def _work(parts: Parts, settings: Settings, leader: Leader | None, stopping: asyncio.Event) -> None:
    """Look at jobs until SIGTERM; then end the looks under way, and nothing is half done."""
    async with open_session() as session, asyncio.TaskGroup() as group:
        pace = Pace(parts.queue.add, settings.status_writes_per_second, time.monotonic, parts.queue.depth)
        poller = Poller(session, pace, parts.queue.add, settings, _now)
        parts.resync.hears = poller.hears
        announcer = Announcer(parts.cluster, parts.queue.depth)
        shared = Shared(time.monotonic)
        told, news = parts.queue.told, parts.roster.take
        reconciler = Reconciler(
            parts.cluster, poller, parts.departed, settings, pace, announcer, _now, shared, told, news
        )
        background = [
            group.create_task(parts.queue.run(_leading(leader, reconciler.look), settings.workers), name="queue"),
            group.create_task(parts.resync.run(), name="resync"),
            group.create_task(poller.run(), name="poller"),
            group.create_task(pace.run(), name="pace"),
            group.create_task(announcer.run(), name="events"),
        ]
        if settings.create_default_runtime:
            image = settings.trainer_image or f"finetune-trainer:{version('finetune-operator')}"
            background.append(group.create_task(ensure_default_runtime(image, parts.cluster), name="first runtime"))
        if leader is not None:
            background.append(group.create_task(_hold(leader), name="lease"))

        async def stop() -> None:
            stopping.set()  # kopf waits for its own task that waits for this
            await _finish_looks(parts.queue, settings.shutdown_seconds)
            for task in background:
                task.cancel()  # all of them, or kopf waits for these as well

        watch = handlers.Watch(parts.cluster, parts.queue, parts.roster, parts.departed)
        await handlers.run(watch, settings, stopping, stop)


async def _finish_looks(queue: WorkQueue, seconds: float) -> None:
    """Let the looks under way end; one that takes too long is broken off, and the next operator looks again."""
    try:
        async with asyncio.timeout(seconds):
            await queue.close()
    except TimeoutError:
        LOG.warning("looks under way did not end in %g s and are broken off", seconds)


def _candidate(election: LeaderElection | None, cluster: Cluster) -> Leader | None:
    """This process among the others; its name tells people the pod, and differs after a restart."""
    if election is None:
        return None
    return Leader(cluster, election, f"{socket.gethostname()}_{uuid.uuid4()}", time.monotonic, _now)


async def _elected(leader: Leader, stopping: asyncio.Event) -> None:
    """Stand by until the lease is ours, or this process is asked to end."""
    acquire, asked = asyncio.create_task(leader.acquire()), asyncio.create_task(stopping.wait())
    await asyncio.wait((acquire, asked), return_when=asyncio.FIRST_COMPLETED)
    asked.cancel()
    if not acquire.done():
        acquire.cancel()
    elif acquire.result() is None and stopping.is_set():
        await leader.release()


def _leading(leader: Leader | None, look: Work) -> Work:
    """The look, only while nobody else can work: one that was paused may wake after its lease has ended."""
    if leader is None:
        return look

    async def guarded(key: Key) -> float | None:
        if not leader.leads():
            raise RetryLater("another operator may work")
        return await look(key)

    return guarded


async def _hold(leader: Leader) -> None:
    """Keep the lease. Once it is lost another may work, so that not even a look under way may go on."""
    try:
        await leader.hold()
    except LeaseLost as lost:
        LOG.critical("the lease is lost, so this process ends: %s", lost)
        logging.shutdown()
        os._exit(1)


def _now() -> datetime:
    return datetime.now(UTC)  # noqa: TID251 - this is the edge that reads the clock


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="finetune-operator", description="Runs FineTuneJobs on Kubernetes.")
    environment = os.environ
    parser.add_argument("--settings", default=environment.get("FINETUNE_SETTINGS"), help="YAML file of settings")
    parser.add_argument("--kubeconfig", default=environment.get("KUBECONFIG"), help="kubeconfig, outside a cluster")
    parser.add_argument("--namespace", action="append", help="namespace to watch; repeat for more (default: all)")
    parser.add_argument("--log-format", choices=("json", "text"), default=environment.get("FINETUNE_LOG", "json"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
