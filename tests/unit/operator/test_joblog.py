"""Lines about a job name it, as fields, from every logger and in every task that works on it."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from typing import Any

import pytest

from finetune_operator.handlers import configure_logging
from finetune_operator.joblog import has_uid
from finetune_operator.queue import Key, RetryLater, WorkQueue


@pytest.fixture
def lines(monkeypatch):
    """What is written as JSON, parsed."""
    text, root = io.StringIO(), logging.getLogger()
    monkeypatch.setattr("sys.stderr", text)
    before, level = root.handlers[:], root.level
    configure_logging(as_json=True)
    yield lambda: [json.loads(line) for line in text.getvalue().splitlines()]
    root.handlers[:] = before
    root.setLevel(level)


def test_each_line_of_a_look_names_its_job(lines) -> None:
    async def look(key: Key) -> float | None:
        has_uid(f"uid-of-{key[1]}")
        await asyncio.sleep(0.01)
        logging.getLogger("somewhere.deep").info("looking")
        await asyncio.gather(asyncio.to_thread(logging.getLogger("a.thread").info, "asking"))
        if key[1] == "bad":
            raise RetryLater("not now", 60.0)
        return None

    async def story() -> None:
        queue = WorkQueue(asyncio.get_running_loop().time)
        task = asyncio.create_task(queue.run(look, 4))
        for name in ("a", "b", "bad"):
            await queue.add(("team", name))
        await asyncio.sleep(0.2)
        task.cancel()

    asyncio.run(story())
    logging.getLogger("nobody").info("about no job")
    told: list[dict[str, Any]] = lines()
    assert {line["message"] for line in told if "job" not in line} == {"about no job"}
    named = [(line["job"]["name"], line["message"]) for line in told if "job" in line]
    assert sorted(named) == [
        *[("a", "asking"), ("a", "looking"), ("b", "asking"), ("b", "looking")],
        *[("bad", "asking"), ("bad", "looking"), ("bad", "team/bad: not now; next look in 60.0 s")],
    ]
    assert {tuple(line["job"]) for line in told if "job" in line} == {("namespace", "name", "uid")}
    assert {line["severity"] for line in told} == {"info"}
