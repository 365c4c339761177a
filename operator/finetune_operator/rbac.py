"""The one table of what the operator may do. The chart's roles are generated from it, and nothing else grants rights.

Not in it, on purpose: secrets (a pod takes its own by reference), pods/log, pods/exec, and any list of claims,
config maps or service accounts: those are only asked for by name, to see that what a job names is there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from finetune_api import names


@dataclass(frozen=True, slots=True)
class Permission:
    """Verbs on some resources of one API group, with the reason for them."""

    group: str
    resources: tuple[str, ...]
    verbs: tuple[str, ...]
    why: str
    cluster_scoped: bool = False


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
    Permission(names.GROUP, (names.RUNTIME_PLURAL,), (*WATCH, "create"), "runtimes; the first one is created", True),
    Permission("batch", ("jobs",), (*GET, *WATCH, "create", "patch"), "children; patch sets spec.suspend"),
    Permission("", ("pods",), WATCH, "how children fare, and where they report progress"),
    Permission(
        "", ("persistentvolumeclaims", "configmaps", "serviceaccounts"), GET, "whether what a job names is there"
    ),
    Permission("", ("services",), ("get", "create"), "names for the pods of a job on several nodes"),
    Permission("networking.k8s.io", ("networkpolicies",), ("get", "create"), "who may reach a job's pods"),
    Permission("", ("events",), ("create",), "what happened, for kubectl describe"),
)
KUEUE_PERMISSIONS = (
    Permission(
        "kueue.x-k8s.io", ("workloads",), ("list", "patch"), "why a job waits in its queue; patch sets spec.active"
    ),
)
"""Granted with settings.kueue alone."""
ELECTION = (
    Permission("coordination.k8s.io", ("leases",), ("get", "create", "update"), "which of several operators works"),
)
"""In the operator's own namespace alone, where there is an election."""

CLAIMS = (Permission("", ("persistentvolumeclaims",), ("create",), "a missing claim for the output"),)
"""With settings.createClaims alone."""


def roles() -> dict[str, list[dict[str, Any]]]:
    """The rules that the chart's roles take: `cluster` needs a ClusterRole, `namespaced` may be one or a Role, and
    `claims` joins the latter with settings.createClaims, `kueue` with settings.kueue."""
    return {
        "cluster": rules(cluster_scoped=True),
        "namespaced": rules(cluster_scoped=False),
        "claims": [_rule(permission) for permission in CLAIMS],
        "kueue": [_rule(permission) for permission in KUEUE_PERMISSIONS],
        "election": [_rule(permission) for permission in ELECTION],
    }


def rules(*, cluster_scoped: bool | None = None) -> list[dict[str, Any]]:
    """The rules of a role: all, or only those on cluster-scoped (or namespaced) resources."""
    return [_rule(p) for p in PERMISSIONS if cluster_scoped is None or p.cluster_scoped is cluster_scoped]


def _rule(permission: Permission) -> dict[str, Any]:
    return {
        "apiGroups": [permission.group],
        "resources": list(permission.resources),
        "verbs": list(permission.verbs),
    }
