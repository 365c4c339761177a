"""Lives of a job in a simulated cluster, in which the operator may die at any write and another goes on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from builders import job_manifest, runtime_manifest
from finetune_api.status import JobStatus
from finetune_api.trainer import Stage
from finetune_operator.announce import Announcer
from finetune_operator.client import CLAIMS, FINETUNE_JOBS, RUNTIMES, SERVICE_ACCOUNTS
from finetune_operator.observe import Departed
from finetune_operator.pace import Pace
from finetune_operator.poll import Told
from finetune_operator.queue import Key, RetryLater
from finetune_operator.reconcile import Reconciler
from finetune_operator.settings import Settings
from finetune_operator.shared import Shared
from simulated import OperatorDied, SimulatedCluster, World

KEY = ("team", "tune")
LOOKS = 60


class SilentPods:
    """No pod answers: what a job becomes must not hang on its progress."""

    def follow(self, *_: Any) -> Told:
        return Told()

    def recorded(self, _: Any) -> None:
        """Nothing was taken."""

    def forget(self, _: Any) -> None:
        """Nothing was kept."""


@dataclass
class Death:
    """Dies once, at the n-th write, before or after it took effect."""

    at: int
    after: bool
    writes: int = 0
    died: bool = False

    def before_write(self) -> None:
        self.writes += 1
        self._die(at_effect=False)

    def after_write(self) -> None:
        self._die(at_effect=True)

    def _die(self, *, at_effect: bool) -> None:
        if not self.died and self.writes == self.at and self.after is at_effect:
            self.died = True
            raise OperatorDied


async def not_woken(key: Key) -> None:
    raise AssertionError(f"{key} was woken, but no pod says anything")


def pace() -> Pace:
    """A budget that nobody needs."""
    return Pace(not_woken, 10, lambda: 0.0)


def fresh_world(script: dict[Stage, list[int]], **spec: Any) -> World:
    """A job, and everything that it names."""
    world = World(script)
    world.add(FINETUNE_JOBS, job_manifest(**spec))
    world.add(RUNTIMES, runtime_manifest())
    for claim in ("finetune-data", "finetune-models"):
        world.add(CLAIMS, {"metadata": {"name": claim, "namespace": "team"}})
    world.add(SERVICE_ACCOUNTS, {"metadata": {"name": "default", "namespace": "team"}})
    return world


def operator(world: World, death: Death) -> Reconciler:
    """A newly started operator that dies as told."""
    return reconciler(world, SimulatedCluster(world, death.before_write, death.after_write))


def reconciler(world: World, cluster: Any) -> Reconciler:
    """A newly started operator: it remembers nothing."""
    pods: Any = SilentPods()
    return Reconciler(
        cluster,
        pods,
        Departed(),
        Settings(),
        pace(),
        Announcer(cluster, int),
        lambda: world.now,
        Shared(time.monotonic),
    )


def status_of(world: World) -> JobStatus:
    stored = world.objects[(FINETUNE_JOBS.plural, *KEY)]
    return JobStatus.model_validate(stored.get("status") or {})


def live(world: World, death: Death, meanwhile: Callable[[World, int], None] = lambda world, turn: None) -> JobStatus:
    """Looks and steps in turn until the job is final; after a death a new operator goes on."""
    reconciler = operator(world, death)
    for turn in range(LOOKS):
        try:
            asyncio.run(reconciler.look(KEY))
        except OperatorDied:
            reconciler = operator(world, death)
        except RetryLater:
            pass
        if status_of(world).is_final:
            return status_of(world)
        meanwhile(world, turn)
        world.step()
    raise AssertionError(f"not final after {LOOKS} looks: {status_of(world)}")


def facts(status: JobStatus) -> dict[str, Any]:
    """What must not depend on when the operator died: everything but times."""
    return {
        "conditions": [(c.type, c.status, c.reason, c.message) for c in status.conditions],
        "phase": status.phase,
        "restarts": status.restarts,
        "disruptions": status.disruptions,
        "attempts": [(a.pod, a.exit_code, a.reason, a.resumed_from_step) for a in status.attempts],
        "checkpoints": status.checkpoints,
        "output": status.output,
        "recovery": status.recovery.step if status.recovery else None,
        "data": status.data,
    }
