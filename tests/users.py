"""People and service accounts with rights of their own, for tests that ask the API server as they would."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from apiserver import Api, ControlPlane

RBAC = "/apis/rbac.authorization.k8s.io/v1"


@contextmanager
def user(plane: ControlPlane, namespace: str, name: str, *cluster_roles: str) -> Iterator[Api]:
    """A connection as somebody who has these cluster roles in `namespace` and no other right."""
    plane.kubectl("create", "serviceaccount", name, "--namespace", namespace)
    for role in cluster_roles:
        who = f"--serviceaccount={namespace}:{name}"
        plane.kubectl("create", "rolebinding", f"{name}-{role}", f"--clusterrole={role}", who, "--namespace", namespace)
    connection = plane.api(plane.kubectl("create", "token", name, "--namespace", namespace).strip())
    try:
        yield connection
    finally:
        connection.close()


@contextmanager
def granted_everywhere(api: Api, name: str, account: tuple[str, str], rules: list[dict[str, object]]) -> Iterator[None]:
    """More rights for a service account, (namespace, name), while the block runs."""
    api.post(f"{RBAC}/clusterroles", {"metadata": {"name": name}, "rules": rules}).must()
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name}
    subject = {"kind": "ServiceAccount", "namespace": account[0], "name": account[1]}
    binding = {"metadata": {"name": name}, "roleRef": role, "subjects": [subject]}
    api.post(f"{RBAC}/clusterrolebindings", binding).must()
    try:
        yield
    finally:
        api.delete(f"{RBAC}/clusterrolebindings/{name}")
        api.delete(f"{RBAC}/clusterroles/{name}")
