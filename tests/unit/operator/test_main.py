"""How the parts end: looks under way first, but not for ever; and none begins while another may work."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from finetune_operator.__main__ import _finish_looks, _leading
from finetune_operator.queue import Key, RetryLater, WorkQueue


@pytest.mark.parametrize(("takes", "ended"), [(0.1, True), (60.0, False)])
def test_a_look_under_way_may_end_within_its_time(takes, ended, caplog) -> None:
    async def story() -> list[Key]:
        done: list[Key] = []

        async def look(key: Key) -> float | None:
            await asyncio.sleep(takes)
            done.append(key)
            return None

        queue = WorkQueue(asyncio.get_running_loop().time)
        task = asyncio.create_task(queue.run(look, 1))
        await queue.add(("team", "tune"))
        await asyncio.sleep(0.05)
        await _finish_looks(queue, 1.0)
        task.cancel()
        return done

    assert bool(asyncio.run(story())) is ended
    assert ("broken off" in caplog.text) is not ended


@pytest.mark.parametrize("leads", [True, False])
def test_no_look_begins_while_another_may_work(leads) -> None:
    looked: list[Key] = []

    class Candidate:
        def leads(self) -> bool:
            return leads

    async def look(key: Key) -> float | None:
        looked.append(key)
        return None

    leader: Any = Candidate()
    work = _leading(leader, look)
    if leads:
        asyncio.run(work(("team", "tune")))  # type: ignore[arg-type]
    else:
        with pytest.raises(RetryLater):
            asyncio.run(work(("team", "tune")))  # type: ignore[arg-type]
    assert bool(looked) is leads
