"""What the operator is set to, what it may do, and the runtime that it brings along."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from pydantic import ValidationError

from finetune_api.runtime import runtime_from
from finetune_operator.__main__ import load_settings
from finetune_operator.client import AlreadyExists, Refused
from finetune_operator.first_runtime import default_runtime, ensure_default_runtime
from finetune_operator.rbac import BY_DEFAULT, PERMISSIONS, Scope, Switch, permissions, roles
from finetune_operator.settings import Settings


def test_settings_come_from_a_file_and_namespaces_from_the_command_line_win(tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text("pollPeriodSeconds: 2\nnamespaces: [a]\n")
    assert load_settings(str(file)) == Settings(poll_period_seconds=2.0, namespaces=("a",))
    assert load_settings(str(file), ["b", "c"]).namespaces == ("b", "c")
    assert load_settings(None) == Settings()
    file.write_text("")
    assert load_settings(str(file)) == Settings()


@pytest.mark.parametrize("text", ["pollPeriod: 2", "pollPeriodSeconds: 0", "workers: many"])
def test_a_setting_that_does_not_exist_or_fit_is_refused(text, tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text(text)
    with pytest.raises(ValidationError):
        load_settings(str(file))


def test_no_right_on_secrets_logs_or_exec_and_no_wildcard():
    granted = {(resource, verb) for p in PERMISSIONS for resource in p.resources for verb in p.verbs}
    resources = {resource for resource, _ in granted}
    assert not {"secrets", "pods/log", "pods/exec", "pods/attach", "pods/portforward", "*"} & resources
    assert "*" not in {verb for _, verb in granted}
    assert {verb for resource, verb in granted if resource == "configmaps"} == {"get"}
    assert {resource for resource, verb in granted if verb == "delete"} == {"finetunejobs"}
    assert all(p.why for p in PERMISSIONS)


def test_the_roles_share_the_rules_without_rest():
    split = [rule for scope in roles().values() for rules in scope.values() for rule in rules]
    assert sorted(map(str, split)) == sorted(str(permission.rule()) for permission in PERMISSIONS)
    assert {p.scope for p in PERMISSIONS if p.switch is Switch.ELECTION} == {Scope.OWN}


def test_what_a_switch_turns_on_is_not_granted_without_it():
    granted = {(resource, verb) for p in permissions(*BY_DEFAULT) for resource in p.resources for verb in p.verbs}
    for switch in set(Switch) - set(BY_DEFAULT):
        more = {(r, verb) for p in permissions(switch) for r in p.resources for verb in p.verbs}
        assert more
        assert not more & granted, switch


def test_the_default_runtime_is_valid_small_and_default():
    runtime = runtime_from(default_runtime("trainer:1"))
    assert (runtime.spec.default, runtime.spec.image, runtime.spec.defaults.resources.gpus_per_node) == (
        True,
        "trainer:1",
        0,
    )


class Runtimes:
    """A cluster of which only the runtimes matter."""

    def __init__(self, there: list[Any], error: Exception | None = None) -> None:
        self.there, self.error, self.made = there, error, []

    async def list(self, _: Any) -> list[Any]:
        return self.there

    async def create(self, _: Any, manifest: Any) -> None:
        if self.error:
            raise self.error
        self.made.append(manifest["spec"]["image"])


@pytest.mark.parametrize(
    ("cluster", "made"),
    [
        (Runtimes([]), ["trainer:1"]),
        (Runtimes([{}]), []),
        (Runtimes([], AlreadyExists()), []),
        (Runtimes([], Refused("forbidden")), []),
    ],
)
def test_the_default_runtime_is_made_only_where_there_is_none(cluster, made):
    fake: Any = cluster
    asyncio.run(ensure_default_runtime("trainer:1", fake))
    assert cluster.made == made
