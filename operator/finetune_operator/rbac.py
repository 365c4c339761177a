"""The one table of what the operator may do. The chart's roles are generated from it, and nothing else grants rights.

Not in it, on purpose: secrets (a pod takes its own by reference), pods/log, pods/exec, and any list of claims,
config maps or service accounts: those are only asked for by name, to see that what a job names is there. What a
setting turns on is granted with that setting alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from finetune_api import names


class Scope(StrEnum):
    """Which role of the chart a permission goes to."""

    CLUSTER = "cluster"
    """A ClusterRole, because the resource belongs to no namespace."""
    JOBS = "jobs"
    """Wherever jobs are: a ClusterRole, or a Role in each namespace of settings.namespaces."""
    OWN = "own"
    """A Role in the operator's own namespace."""


class Switch(StrEnum):
    """What must be turned on for a permission to be granted."""

    ALWAYS = "always"
    FIRST_RUNTIME = "firstRuntime"
    """settings.createDefaultRuntime, and the whole cluster to watch."""
    NETWORK_POLICIES = "networkPolicies"
    """settings.networkPolicy.enabled."""
    CLAIMS = "claims"
    """settings.createClaims."""
    KUEUE = "kueue"
    """settings.kueue."""
    ELECTION = "election"
    """leaderElection.enabled."""


@dataclass(frozen=True, slots=True)
class Permission:
    """Verbs on some resources of one API group, with the reason for them."""

    group: str
    resources: tuple[str, ...]
    verbs: tuple[str, ...]
    why: str
    switch: Switch = Switch.ALWAYS
    scope: Scope = Scope.JOBS

    def rule(self) -> dict[str, Any]:
        """As a role has it."""
        return {"apiGroups": [self.group], "resources": list(self.resources), "verbs": list(self.verbs)}


GET, WATCH = ("get",), ("list", "watch")
PERMISSIONS = (
    Permission(names.GROUP, (names.JOB_PLURAL,), (*GET, *WATCH, "delete"), "jobs; delete at the end of their ttl"),
    Permission(names.GROUP, (f"{names.JOB_PLURAL}/status",), ("patch",), "status by server-side apply"),
    Permission(
        names.GROUP,
        (f"{names.JOB_PLURAL}/finalizers",),
        ("update",),
        "blockOwnerDeletion on children, where OwnerReferencesPermissionEnforcement is on",
    ),
    Permission("batch", ("jobs",), (*GET, *WATCH, "create", "patch"), "children; patch sets spec.suspend"),
    Permission("", ("pods",), WATCH, "how children fare, and where they report progress"),
    Permission(
        "", ("persistentvolumeclaims", "configmaps", "serviceaccounts"), GET, "whether what a job names is there"
    ),
    Permission("", ("services",), ("get", "create"), "names for pods on several nodes, as any runtime may allow them"),
    Permission("", ("events",), ("create",), "what happened, for kubectl describe"),
    Permission(
        "networking.k8s.io",
        ("networkpolicies",),
        ("get", "create"),
        "who may reach a job's pods",
        Switch.NETWORK_POLICIES,
    ),
    Permission("", ("persistentvolumeclaims",), ("create",), "a missing claim for the output", Switch.CLAIMS),
    Permission(
        "kueue.x-k8s.io",
        ("workloads",),
        ("list", "patch"),
        "why a job waits in its queue; patch sets spec.active",
        Switch.KUEUE,
    ),
    Permission(names.GROUP, (names.RUNTIME_PLURAL,), WATCH, "what jobs may do", scope=Scope.CLUSTER),
    Permission(
        names.GROUP,
        (names.RUNTIME_PLURAL,),
        ("create",),
        "one where there is none",
        Switch.FIRST_RUNTIME,
        Scope.CLUSTER,
    ),
    Permission("coordination.k8s.io", ("leases",), ("create",), "the first time", Switch.ELECTION, Scope.OWN),
    Permission(
        "coordination.k8s.io",
        ("leases",),
        ("get", "update"),
        "which of several operators works; the chart names the one Lease",
        Switch.ELECTION,
        Scope.OWN,
    ),
)
BY_DEFAULT = (Switch.ALWAYS, Switch.FIRST_RUNTIME, Switch.NETWORK_POLICIES)
"""What a chart without any value turns on."""


def permissions(*switches: Switch) -> tuple[Permission, ...]:
    """What is granted with these switches on."""
    return tuple(permission for permission in PERMISSIONS if permission.switch in switches)


def roles() -> dict[str, dict[str, list[dict[str, Any]]]]:
    """The rules that the chart's roles take, by scope and switch."""
    found: dict[str, dict[str, list[dict[str, Any]]]] = {scope.value: {} for scope in Scope}
    for permission in PERMISSIONS:
        found[permission.scope.value].setdefault(permission.switch.value, []).append(permission.rule())
    return found
