"""How it begins, and how its parts end: looks under way first, but not for ever; none begins while another may work."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from finetune_operator.__main__ import _finish_looks, _leading, main
from finetune_operator.queue import Key, RetryLater, WorkQueue

KUBECONFIG = {
    "current-context": "here",
    "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me"}}],
    "clusters": [{"name": "here", "cluster": {"server": "http://127.0.0.1:1"}}],
    "users": [{"name": "me", "user": {}}],
}


def refusal(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    """What the command says when it does not start."""
    monkeypatch.setattr(sys, "argv", ["finetune-operator", *arguments])
    monkeypatch.setattr("finetune_operator.handlers.configure_logging", lambda *, as_json: None)
    with pytest.raises(SystemExit) as ended:
        main()
    return str(ended.value)


@pytest.mark.parametrize(
    ("settings", "arguments", "said"),
    [
        ("- a", ["--namespace", "team"], "Input should be a valid dictionary"),
        ("a: [", [], "expected the node content"),
        ("workers: 0", [], "workers: Input should be greater than or equal to 1"),
        ("namespaces: [team-*]", [], "namespaces.0: String should match pattern"),
        ("{}", ["--kubeconfig", "/does/not/exist"], "kubeconfig /does/not/exist: Invalid kube-config file"),
    ],
)
def test_what_keeps_it_from_starting_is_a_sentence(settings, arguments, said, tmp_path: Path, monkeypatch) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(settings)
    assert said in refusal(monkeypatch, "--settings", str(file), *arguments)


def test_a_port_that_is_taken_is_named(tmp_path: Path, monkeypatch) -> None:
    kubeconfig, file = tmp_path / "kubeconfig", tmp_path / "settings.yaml"
    kubeconfig.write_text(json.dumps(KUBECONFIG))
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = taken.getsockname()[1]
        file.write_text(f"healthPort: {port}")
        said = refusal(monkeypatch, "--settings", str(file), "--kubeconfig", str(kubeconfig))
    assert said.startswith(f"healthPort {port} cannot be served: ")
    assert said.endswith("address already in use; choose another")


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
