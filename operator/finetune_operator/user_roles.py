"""What people may do with the two kinds: cluster roles beside the operator's own, from which the chart's are made.

Nobody but the operator may write a status: it is what others believe of a job. Runtimes hold what jobs may touch, so
that only a role of their own may write them; it joins no role of Kubernetes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from finetune_api import names

READ = ["get", "list", "watch"]
WRITE = ["create", "update", "patch", "delete", "deletecollection"]


@dataclass(frozen=True, slots=True)
class UserRole:
    """A cluster role for people."""

    suffix: str
    """After the name of the installation."""
    plural: str
    verbs: tuple[str, ...]
    joins: tuple[str, ...] = ()
    """Roles of Kubernetes that have it too (aggregation)."""


USER_ROLES = (
    UserRole("view", names.JOB_PLURAL, tuple(READ), ("view",)),
    UserRole("edit", names.JOB_PLURAL, (*READ, *WRITE), ("edit", "admin")),
    UserRole("runtime-view", names.RUNTIME_PLURAL, tuple(READ), ("view",)),
    UserRole("runtime-admin", names.RUNTIME_PLURAL, (*READ, *WRITE)),
)


def user_roles() -> list[dict[str, Any]]:
    """The roles as the chart reads them."""
    return [
        {
            "suffix": role.suffix,
            "joins": list(role.joins),
            "rules": [{"apiGroups": [names.GROUP], "resources": [role.plural], "verbs": list(role.verbs)}],
        }
        for role in USER_ROLES
    ]
