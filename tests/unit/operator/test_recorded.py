"""A pod that has finished is told when its last report stands in the status: at once, and not before."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from aiohttp import web

from deaths import KEY as JOB
from deaths import Death, SilentPods, fresh_world, operator, reconciler, status_of
from finetune_api import names
from finetune_api.report import EarlyStop
from finetune_api.trainer import Stage
from finetune_operator.settings import Settings
from polling import GOOD, KEY, POD, asking
from simulated import OperatorDied, SimulatedCluster, World


class Waiting(SilentPods):
    """A pod that waits until its last report is in the status."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.told_at: list[str] = []

    def recorded(self, key: Any) -> None:
        assert key == JOB
        self.told_at.append(status_of(self.world).phase)


def test_pods_are_told_of_what_is_written_and_only_then():
    world = fresh_world({Stage.PREPARE: [0], Stage.TRAIN: [0]})
    pods: Any = Waiting(world)
    death = Death(at=2, after=False)
    dying = replace(operator(world, death), poller=pods)
    with pytest.raises(OperatorDied):
        asyncio.run(dying.look(JOB))
    assert pods.told_at == ["Preparing"], "the write that begins the job; it died before the next"
    quiet = replace(reconciler(world, SimulatedCluster(world, lambda: None, lambda: None)), poller=pods)
    asyncio.run(quiet.look(JOB))
    pods.told_at.clear()
    asyncio.run(quiet.look(JOB))
    assert pods.told_at == ["Preparing"], "nothing is new: what was taken stands there already"


def test_a_pod_that_has_finished_is_told_at_once_that_its_last_report_is_recorded():
    """Not when it was heard, and not for a report that the look before the write had not taken."""
    settings = Settings(poll_period_seconds=0.3)
    asked: list[str | None] = []
    said = [GOOD]

    async def answer(request: web.Request) -> web.Response:
        asked.append(request.headers.get(names.RECORDED_HEADER))
        return web.Response(text=said[0].model_dump_json())

    async def story() -> None:
        async with asking(answer, settings) as pods:
            pods.follow()
            await pods.until(lambda: pods.follow().reports)
            pods.poller.recorded(KEY)
            said[0] = GOOD.model_copy(update={"finished": True})
            await pods.until(lambda: len(pods.woken) == 2)
            pods.poller.recorded(KEY)
            so_far = len(asked)
            await pods.until(lambda: len(asked) > so_far)
            assert set(asked) == {None}, "the status may lack what was heard after the look"
            assert pods.follow().reports[POD.uid].report.finished
            begun = asyncio.get_running_loop().time()
            pods.poller.recorded(KEY)
            await pods.until(lambda: asked[-1] == POD.uid)
            assert asyncio.get_running_loop().time() - begun < settings.poll_period_seconds / 2
            so_far = len(asked)
            pods.poller.recorded(KEY)
            await asyncio.sleep(0.1)
            assert len(asked) == so_far, "once is enough at once"
            await pods.until(lambda: len(asked) > so_far)
            assert asked[-1] == POD.uid, "the answer may have been lost"

    asyncio.run(story())


def test_a_pod_whose_last_report_changes_with_each_question_is_asked_once_a_period():
    """Each look that records one would lead to the next, as fast as the API server writes."""
    asked: list[float] = []

    async def answer(_: web.Request) -> web.Response:
        asked.append(asyncio.get_running_loop().time())
        stop = EarlyStop(metric="loss", step=len(asked), evaluations=1)
        return web.Response(text=GOOD.model_copy(update={"finished": True, "early_stop": stop}).model_dump_json())

    async def story() -> None:
        async with asking(answer, Settings(poll_period_seconds=0.3)) as pods:
            begun = asyncio.get_running_loop().time()
            while asyncio.get_running_loop().time() - begun < 1.5:
                pods.follow()
                pods.poller.recorded(KEY)
                await asyncio.sleep(0.01)
            assert 2 <= len(asked) <= 1 + 1.5 / 0.3 + 1

    asyncio.run(story())


def test_a_pod_that_is_being_deleted_is_asked_sooner_because_it_waits_for_that():
    asked: list[float] = []

    async def answer(_: web.Request) -> web.Response:
        asked.append(asyncio.get_running_loop().time())
        return web.Response(text=GOOD.model_dump_json())

    async def story() -> None:
        async with asking(answer, Settings(poll_period_seconds=60)) as pods:
            pods.follow()
            await pods.until(lambda: asked)
            pods.follow(replace(POD, running=False, leaving=True))
            await pods.until(lambda: len(asked) == 3)
            assert asked[2] - asked[1] >= 0.9

    asyncio.run(story())
