"""The health check for Argo CD, run by Lua on jobs as the operator leaves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lupa import LuaRuntime

from manifests import ROOT

CHECK = (ROOT / "examples" / "gitops" / "argocd" / "health.lua").read_text()


def health(status: dict[str, Any] | None, generation: int = 1) -> tuple[str, str]:
    """(status, message) that Argo CD would show."""
    lua = LuaRuntime()
    job = {"metadata": {"generation": generation}, **({"status": status} if status is not None else {})}
    check = lua.eval(f"function(obj) {CHECK}\nend")
    said = check(_table(lua, job))
    return said.status, said.message


def _table(lua: LuaRuntime, value: Any) -> Any:
    if isinstance(value, dict):
        return lua.table_from({key: _table(lua, inner) for key, inner in value.items()})
    return lua.table_from([_table(lua, inner) for inner in value]) if isinstance(value, list) else value


def condition(kind: str, status: str = "True", reason: str | None = None) -> dict[str, str]:
    return {"type": kind, "status": status, "reason": reason or kind, "message": f"why {kind}"}


ACCEPTED = condition("Accepted")


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (None, ("Progressing", "waits for the operator")),
        ({"conditions": [ACCEPTED], "observedGeneration": 0}, ("Progressing", "the operator has not seen")),
        ({"conditions": [condition("Accepted", "False", "ModelNotAllowed")]}, ("Degraded", "ModelNotAllowed: why")),
        ({"conditions": [condition("Accepted", "False", "CheckpointNotReady")]}, ("Progressing", "CheckpointNotReady")),
        ({"conditions": [ACCEPTED], "phase": "Preparing"}, ("Healthy", "Preparing")),
        (
            {"conditions": [ACCEPTED], "phase": "Running", "progress": {"display": "3/4"}, "observedGeneration": 1},
            ("Healthy", "Running, step 3/4"),
        ),
        ({"conditions": [ACCEPTED, condition("Suspended")]}, ("Suspended", "why Suspended")),
        (
            {"conditions": [ACCEPTED, condition("Suspended", "False"), condition("Complete")]},
            ("Healthy", "why Complete"),
        ),
        ({"conditions": [condition("Failed", reason="Diverged"), condition("Stalled")]}, ("Degraded", "Diverged: why")),
        ({"conditions": [condition("Suspended"), condition("Failed", reason="Cancelled")]}, ("Degraded", "Cancelled")),
    ],
)
def test_health(status, expected):
    word, message = health(status)
    assert word == expected[0]
    assert message.startswith(expected[1])


def test_every_lua_file_is_tested():
    assert [path.name for path in Path(ROOT / "examples").rglob("*.lua")] == ["health.lua"]
