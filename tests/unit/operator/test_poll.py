"""A pod is believed only when it is that pod, about that job, in time, small, and to the letter of the schema."""

from __future__ import annotations

import asyncio
import gzip
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from builders import JOB_UID, make_checkpoint, make_progress
from finetune_api import names
from finetune_api.status import JobWarning
from finetune_operator.metrics import REPORTS
from finetune_operator.plan.state import Fault
from finetune_operator.poll import Told
from finetune_operator.settings import Settings
from polling import GOOD, KEY, POD, SETTINGS, answering, asking


def counted(outcome: str) -> float:
    return REPORTS.labels(outcome)._value.get()


def test_a_pods_report_is_heard_and_the_question_names_the_job():
    asked = []

    async def answer(request: web.Request) -> web.Response:
        asked.append(dict(request.headers))
        return web.Response(text=GOOD.model_dump_json())

    async def story() -> None:
        async with asking(answer) as pods:
            assert pods.follow() == Told()
            told = await pods.until(lambda: pods.follow().reports)
            assert told[POD.uid].report == GOOD
            age = datetime.now(UTC) - datetime.fromisoformat(told[POD.uid].at)
            assert 0 <= age.total_seconds() < 5
            assert asked[0][names.PROGRESS_HEADER] == JOB_UID

    asyncio.run(story())


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        (answering(GOOD.model_copy(update={"job_uid": "another"})), Fault.FOREIGN),
        (answering(GOOD.model_copy(update={"pod_uid": "another"})), Fault.FOREIGN),
        (answering(GOOD.model_copy(update={"pod_uid": None})), Fault.FOREIGN),
        (answering(""), Fault.MALFORMED),
        (answering("not JSON"), Fault.MALFORMED),
        (answering("[" * 60_000), Fault.MALFORMED),
        (answering(GOOD.model_dump_json()[:-1] + ',"unknown":1}'), Fault.MALFORMED),
        (answering(GOOD.model_dump_json().replace('"epoch":0.0', '"epoch":NaN')), Fault.MALFORMED),
        (answering("{}" + " " * names.PROGRESS_BYTES), Fault.TOO_LONG),
        (answering(b" " * 10_000_000), Fault.TOO_LONG),
        (answering("", status=404), Fault.REFUSED),
        (answering("", status=302, Location="/progress"), Fault.REFUSED),
        (answering(gzip.compress(b"{}" + b" " * 10_000_000), **{"Content-Encoding": "gzip"}), Fault.REFUSED),
    ],
)
def test_any_other_answer_is_dropped_counted_and_told(answer, fault):
    async def story() -> None:
        before = counted(fault.value)
        async with asking(answer) as pods:
            pods.follow()
            silences = await pods.until(lambda: pods.follow().silences)
            assert silences[POD.uid].fault is fault
            assert pods.follow().reports == {}
            assert pods.pace.waiting() == 0
        assert counted(fault.value) > before

    asyncio.run(story())


def test_the_largest_report_that_is_allowed_is_heard():
    text = GOOD.model_dump_json()

    async def story() -> None:
        async with asking(answering(text + " " * (names.PROGRESS_BYTES - len(text.encode())))) as pods:
            pods.follow()
            assert (await pods.until(lambda: pods.follow().reports))[POD.uid].report == GOOD

    asyncio.run(story())


@pytest.mark.parametrize(
    "pod", [replace(POD, running=False), replace(POD, ip=None), replace(POD, host_network=True)], ids=str
)
def test_only_a_running_pod_in_its_own_network_is_asked(pod):
    asked = []

    async def answer(request: web.Request) -> web.Response:
        asked.append(request)
        return web.Response(text=GOOD.model_dump_json())

    async def story() -> None:
        async with asking(answer) as pods:
            pods.follow(pod)
            await asyncio.sleep(0.2)
            assert (pods.follow(pod), asked) == (Told(), [])
            pods.follow(POD)
            await pods.until(lambda: pods.follow(POD).reports)
            assert list(pods.follow(pod).reports) == [POD.uid], "its last report stays when it ends"
            so_far = len(asked)
            await asyncio.sleep(0.3)
            assert len(asked) <= so_far + 1

    asyncio.run(story())


def test_a_pod_is_asked_once_a_period_until_its_job_is_forgotten():
    """Between two questions lies a period, however often a look asks for them; that of two jobs only the one that is
    not forgotten is asked on shows that there was time enough to ask the other."""
    sent: dict[str, list[float]] = {}

    async def answer(request: web.Request) -> web.Response:
        assert request.transport is not None
        address = request.transport.get_extra_info("sockname")[0]
        sent.setdefault(address, []).append(asyncio.get_running_loop().time())
        return web.Response(text=GOOD.model_dump_json())

    async def story() -> None:
        async with asking(answer) as pods:
            begun = asyncio.get_running_loop().time()

            def followed_often() -> bool:
                pods.follow()
                return len(asked) >= 5

            asked = sent.setdefault("127.0.0.1", [])
            await pods.until(followed_often, 30)
            assert asked[-1] - begun > 0.9 * SETTINGS.poll_period_seconds * (len(asked) - 1)
            await pods.until(lambda: pods.poller.hears(KEY), 30)
            pods.poller.forget(KEY)
            assert not pods.poller.hears(KEY)
            so_far = len(asked)
            pods.follow(replace(POD, ip="127.0.3.1"), key=("team", "other"))
            await pods.until(lambda: len(sent.get("127.0.3.1", ())) >= 5, 30)
            assert len(asked) <= so_far + 1

    asyncio.run(story())


def test_only_what_is_new_wakes_a_job_and_figures_wait_for_the_budget():
    said = [GOOD]

    async def answer(_: web.Request) -> web.Response:
        return web.Response(text=said[0].model_dump_json())

    async def story() -> None:
        async with asking(answer) as pods:
            pods.follow()

            async def says(**news: Any) -> tuple[int, int]:
                """Woken at once, and left to the budget, for this news."""
                said[0] = said[0].model_copy(update=news)
                woken = len(pods.woken)
                await pods.until(lambda: pods.follow().reports.get(POD.uid, None))
                await pods.until(lambda: pods.follow().reports[POD.uid].report == said[0])
                waiting = pods.pace.waiting()
                pods.pace.looked(KEY, wrote=True)
                return len(pods.woken) - woken, waiting

            warning = JobWarning(reason="StepSkipped", message="1 step")
            assert await says() == (1, 0), "the first report tells that the pod is the job's"
            assert await says(progress=make_progress(8)) == (0, 1)
            assert await says(warnings=(warning,)) == (1, 0)
            assert await says(warnings=(warning.model_copy(update={"message": "2 steps"}),)) == (0, 1)
            assert await says(checkpoints=(make_checkpoint(8),)) == (1, 0)
            assert await says(finished=True) == (1, 0)
            await asyncio.sleep(0.3)
            assert (len(pods.woken), pods.pace.waiting()) == (4, 0), "the same again is no news"

    asyncio.run(story())


def test_a_silent_pod_wakes_its_job_once_and_again_when_it_speaks():
    speaks = asyncio.Event()

    async def answer(_: web.Request) -> web.Response:
        return web.Response(text=GOOD.model_dump_json() if speaks.is_set() else "garbage")

    async def story() -> None:
        async with asking(answer) as pods:
            first = pods.follow()
            await pods.until(lambda: pods.woken)
            assert first == Told()
            assert not pods.poller.hears(KEY)
            await asyncio.sleep(0.3)
            assert len(pods.woken) == 1
            speaks.set()
            await pods.until(lambda: len(pods.woken) == 2)
            assert pods.follow().silences == {}

    asyncio.run(story())


def test_a_pod_that_took_long_to_run_has_not_been_silent_meanwhile():
    """The wait for a node or an image is no silence: the patience begins when the pod can be asked."""
    patience = SETTINGS.patience_seconds

    async def story() -> None:
        async with asking(answering("garbage")) as pods:
            pods.follow(replace(POD, running=False))
            await asyncio.sleep(patience)
            begun = datetime.now(UTC)
            pods.follow()
            silence = (await pods.until(lambda: pods.follow().silences))[POD.uid]
            assert datetime.fromisoformat(silence.since) >= begun.replace(microsecond=0)
            await pods.until(lambda: pods.woken)
            assert (datetime.now(UTC) - begun).total_seconds() >= patience

    asyncio.run(story())


def test_pods_that_hang_delay_each_other_and_nobody_else():
    """Two pods are asked at a time, four hang for ever, and twenty answer all the same."""
    settings = Settings(poll_period_seconds=0.05, poll_timeout_seconds=0.5, concurrent_polls=2)
    answered: dict[str, int] = {}
    hung: set[str] = set()
    for_ever = asyncio.Event()

    async def answer(request: web.Request) -> web.Response:
        assert request.transport is not None
        address = request.transport.get_extra_info("sockname")[0]
        if address.startswith("127.0.1."):
            hung.add(address)
            await for_ever.wait()
        answered[address] = answered.get(address, 0) + 1
        return web.Response(text=GOOD.model_dump_json())

    async def story() -> None:
        async with asking(answer, settings) as pods:
            for number in range(1, 5):
                hanging = replace(POD, uid=f"hanging-{number}", ip=f"127.0.1.{number}")
                pods.follow(hanging, key=("team", f"hanging-{number}"))
            await pods.until(lambda: counted("unreachable") >= before + 4, 60)
            # From here on no question to a pod that hangs ends but the two of now: those asked next keep their places.
            pods.poller._timeout = aiohttp.ClientTimeout(total=600)
            so_far = counted("unreachable")
            hung.clear()
            await pods.until(lambda: len(hung) >= 2, 60)
            for number in range(1, 21):
                pods.follow(replace(POD, ip=f"127.0.2.{number}"), key=("team", f"well-{number}"))
            await pods.until(lambda: len(answered) == 20 and min(answered.values()) >= 3, 60)
            assert counted("unreachable") <= so_far + 2, "two places are all that those that hang have"
            for_ever.set()

    before = counted("unreachable")
    asyncio.run(story())


def test_an_answer_that_drips_is_left_in_time():
    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        with suppress(ConnectionError):
            for _ in range(1000):
                await response.write(b" ")
                await asyncio.sleep(0.02)
        return response

    async def story() -> None:
        async with asking(answer) as pods:
            begun = asyncio.get_running_loop().time()
            pods.follow()
            silences = await pods.until(lambda: pods.follow().silences)
            assert silences[POD.uid].fault is Fault.UNREACHABLE
            assert asyncio.get_running_loop().time() - begun < 3 * SETTINGS.poll_timeout_seconds

    asyncio.run(story())
