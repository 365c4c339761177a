"""Start the operator: read the environment, connect, and run watch, queue, resync, poller and health side by side."""

from __future__ import annotations

import argparse
import asyncio
import functools
import os
import sys
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from finetune_operator import handlers
from finetune_operator.client import IN_CLUSTER, Cluster
from finetune_operator.first_runtime import ensure_default_runtime
from finetune_operator.health import Health, serve
from finetune_operator.observe import Departed
from finetune_operator.pace import Pace
from finetune_operator.plan.invalid import sentences
from finetune_operator.poll import Poller, open_session
from finetune_operator.queue import WorkQueue
from finetune_operator.reconcile import Reconciler
from finetune_operator.resync import Resync
from finetune_operator.roster import Roster
from finetune_operator.settings import Settings


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
    asyncio.run(run(settings, arguments.kubeconfig))


def load_settings(path: str | None, namespaces: list[str] | None = None) -> Settings:
    """The settings of a YAML file; namespaces of the command line win.

    Raises:
        OSError, YAMLError: the file cannot be read.
        pydantic.ValidationError: it says what it may not.
    """
    values = YAML(typ="safe").load(Path(path).read_text(encoding="utf-8")) if path else None
    given = values or {}
    return Settings.model_validate({**given, "namespaces": namespaces} if namespaces else given)


async def run(settings: Settings, kubeconfig: str | None) -> None:
    """Run until SIGTERM; a part that fails ends the whole."""
    cluster = await Cluster.connect(kubeconfig, in_cluster=Path(IN_CLUSTER).exists())
    queue, roster, departed = WorkQueue(time.monotonic), Roster(), Departed()
    resync = Resync(cluster, queue, roster, settings, time.monotonic)
    missing = functools.partial(handlers.missing_watches, settings.namespaces)
    health = Health(queue, resync, missing, settings.stuck_after_seconds, time.monotonic)
    runner = await serve(health, settings.health_port)
    try:
        async with open_session() as session, asyncio.TaskGroup() as group:
            pace = Pace(queue.add, settings.status_writes_per_second, time.monotonic)
            poller = Poller(session, pace, queue.add, settings, _now)
            reconciler = Reconciler(cluster, poller, departed, settings, pace, _now)
            background = [
                group.create_task(queue.run(reconciler.look, settings.workers), name="queue"),
                group.create_task(resync.run(), name="resync"),
                group.create_task(poller.run(), name="poller"),
                group.create_task(pace.run(), name="pace"),
            ]
            if settings.create_default_runtime:
                image = settings.trainer_image or f"finetune-trainer:{version('finetune-operator')}"
                background.append(group.create_task(ensure_default_runtime(image, cluster), name="first runtime"))

            def stop() -> None:
                for task in background:
                    task.cancel()

            await handlers.run(handlers.Watch(cluster, queue, roster, departed), settings, stop)
            stop()
    finally:
        await runner.cleanup()
        await cluster.close()


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
