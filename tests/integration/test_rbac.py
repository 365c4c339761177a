"""What the operator's service account may do, asked of the API server's own authorizer."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from apiserver import Api
from finetune_operator.rbac import BY_DEFAULT, Scope, permissions

VERBS = ("get", "list", "watch", "create", "update", "patch", "delete", "deletecollection")
FORBIDDEN = [
    ("", "secrets"),
    ("", "pods/log"),
    ("", "pods/exec"),
    ("", "pods/attach"),
    ("", "pods/portforward"),
    ("", "serviceaccounts/token"),
    ("", "nodes"),
    ("", "namespaces"),
    ("kueue.x-k8s.io", "workloads"),
    ("coordination.k8s.io", "leases"),
    ("apps", "deployments"),
    ("rbac.authorization.k8s.io", "roles"),
    ("rbac.authorization.k8s.io", "clusterroles"),
]


@pytest.fixture(scope="module")
def as_operator(plane, operator_account) -> Iterator[Api]:
    """A connection with the token of the operator's service account."""
    connection = plane.api(json.loads(operator_account.read_text())["users"][0]["user"]["token"])
    yield connection
    connection.close()


def granted(api: Api, group: str, resource: str) -> set[str]:
    """The verbs that the bearer may use on a resource in every namespace."""
    name, _, subresource = resource.partition("/")

    def may(verb: str) -> bool:
        what = {"group": group, "resource": name, "subresource": subresource, "verb": verb}
        review = {"spec": {"resourceAttributes": what}}
        answer = api.post("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", review).must()
        return bool(answer["status"]["allowed"])

    return {verb for verb in VERBS if may(verb)}


TABLE: dict[tuple[str, str], set[str]] = {}
"""(group, resource) to the verbs that the chart grants without any value."""
for _permission in permissions(*BY_DEFAULT):
    assert _permission.scope is not Scope.OWN, "asked of every namespace"
    for _resource in _permission.resources:
        TABLE.setdefault((_permission.group, _resource), set()).update(_permission.verbs)


@pytest.mark.parametrize(("group", "resource"), TABLE, ids=[resource for _, resource in TABLE])
def test_what_the_table_grants_is_granted_and_no_more(as_operator, group, resource) -> None:
    assert granted(as_operator, group, resource) == TABLE[group, resource]


@pytest.mark.parametrize(("group", "resource"), FORBIDDEN, ids=[resource for _, resource in FORBIDDEN])
def test_nothing_else_is_granted(as_operator, group, resource) -> None:
    assert granted(as_operator, group, resource) == set()


def test_a_secret_is_refused_for_real(plane, operator_account, namespace, api) -> None:
    secret = {"metadata": {"name": "token"}, "stringData": {"key": "value"}}
    api.post(f"/api/v1/namespaces/{namespace}/secrets", secret).must()
    done = plane.run("kubectl", "get", "secret", "token", "-n", namespace, kubeconfig=operator_account)
    assert "forbidden" in done.stderr
    can = plane.run("kubectl", "auth", "can-i", "get", "secrets", "--all-namespaces", kubeconfig=operator_account)
    assert can.stdout.strip() == "no"
