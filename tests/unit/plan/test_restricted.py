"""A runtime's podTemplate cannot lead the pods out of the restricted Pod Security Standard."""

from __future__ import annotations

from typing import Any

import pytest

from builders import NOW, before_start, make_job, make_runtime
from finetune_operator.plan.decide import decide
from finetune_operator.plan.restricted import SOURCES
from finetune_operator.settings import Settings

APPARMOR = "container.apparmor.security.beta.kubernetes.io/trainer"
SECCOMP = "container.seccomp.security.alpha.kubernetes.io/trainer"
TOKEN = {"projected": {"sources": [{"configMap": {"name": "ca"}}, {"serviceAccountToken": {"path": "token"}}]}}


def verdict(template: dict[str, Any]) -> tuple[str, str]:
    """(reason, message) of the Accepted condition on a runtime with this podTemplate."""
    observed = before_start(make_runtime(podTemplate=template))
    accepted = decide(make_job(), observed, Settings(), NOW).status.conditions[0]
    return accepted.reason, accepted.message


@pytest.mark.parametrize("source", sorted(SOURCES))
def test_every_kind_of_volume_of_the_standard_may_be_added(source):
    assert verdict({"volumes": [{"name": "more", source: {}}]})[0] == "Accepted"


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (
            {"volumes": [{"name": "ca", "configMap": {}}, {"name": "disk", "hostPath": {"path": "/"}}]},
            "podTemplate.volumes[1] (disk) is a volume of kind hostPath: use one of configMap, csi, downwardAPI",
        ),
        (
            {"volumes": [{"name": "share", "nfs": {"server": "a", "path": "/"}}]},
            "podTemplate.volumes[0] (share) is a volume of kind nfs: use one of",
        ),
        (
            {"volumes": [{"name": "two", "emptyDir": {}, "hostPath": {"path": "/"}}]},
            "podTemplate.volumes[0] (two) is a volume of kind hostPath",
        ),
        (
            {"volumes": [{"name": "all", **TOKEN}]},
            "podTemplate.volumes[0] (all) has a service account token: leave it out",
        ),
        ({"annotations": {APPARMOR: "unconfined"}}, f"podTemplate.annotations[{APPARMOR}] is unconfined: leave it out"),
        ({"annotations": {SECCOMP: "unconfined"}}, f"podTemplate.annotations[{SECCOMP}] is unconfined"),
        (
            {"annotations": {"seccomp.security.alpha.kubernetes.io/pod": "localhost/mine"}},
            "podTemplate.annotations[seccomp.security.alpha.kubernetes.io/pod] is localhost/mine",
        ),
    ],
)
def test_what_the_standard_forbids_is_refused_with_what_to_do(template, words):
    reason, message = verdict(template)
    assert reason == "InvalidSpec"
    assert message.startswith("FineTuneRuntime gpu: podTemplate.")
    assert words in message
    assert message.endswith("pods of jobs meet the Pod Security Standard restricted")


def test_profiles_that_are_the_runtimes_own_may_be_named():
    assert (
        verdict({"annotations": {APPARMOR: "runtime/default", SECCOMP: "runtime/default", "a": "b"}})[0] == "Accepted"
    )


@pytest.mark.parametrize("projected", [None, "odd", {"sources": None}, {"sources": {}}, {"sources": ["odd", None]}])
def test_what_no_api_server_would_take_is_left_to_it(projected):
    assert verdict({"volumes": [{"name": "odd", "projected": projected}]})[0] == "Accepted"
