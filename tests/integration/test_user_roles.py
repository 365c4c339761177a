"""What people may do: requests of real users who have the roles of Kubernetes, and the two of the platform team."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from apiserver import Api
from judges import collection
from kubelet import wait_for
from manifests import job, runtime
from users import granted_everywhere, user

RUNTIMES = "/apis/finetune.dev/v1alpha1/finetuneruntimes"
JOB_VERBS = ("get", "list", "watch", "create", "update", "patch", "delete", "deletecollection")
READ, ALL, NONE = {"get", "list", "watch"}, set(JOB_VERBS), set()
MAY = {"view": READ, "edit": ALL, "admin": ALL}


def may(api: Api, resource: str, namespace: str, subresource: str = "") -> set[str]:
    """The verbs that the bearer may use, as `kubectl auth can-i` asks."""
    what = {"group": "finetune.dev", "resource": resource, "subresource": subresource, "namespace": namespace}

    def allowed(verb: str) -> bool:
        review = {"spec": {"resourceAttributes": {**what, "verb": verb}}}
        answer = api.post("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", review).must()
        return bool(answer["status"]["allowed"])

    return {verb for verb in JOB_VERBS if allowed(verb)}


@pytest.fixture(params=MAY)
def person(request, plane, operator_account, namespace) -> Iterator[tuple[str, Api]]:
    """Somebody who has a role of Kubernetes in the namespace."""
    with user(plane, namespace, "person", request.param) as connection:
        wait_for(lambda: "list" in may(connection, "finetunejobs", namespace), "the aggregated roles")
        yield request.param, connection


def test_the_roles_of_kubernetes_cover_jobs_and_never_their_status(person, namespace) -> None:
    role, connection = person
    assert may(connection, "finetunejobs", namespace) == MAY[role]
    assert may(connection, "finetunejobs", namespace, "status") == NONE
    assert may(connection, "finetunejobs", "default") == NONE
    assert may(connection, "finetuneruntimes", "") == NONE


def test_nobody_but_the_operator_can_forge_a_status(person, namespace, api) -> None:
    role, connection = person
    jobs = collection(job(), namespace)
    api.post(jobs, job("real")).must()
    done = {"type": "Complete", "status": "True", "reason": "Succeeded", "message": "", "lastTransitionTime": None}
    forged = {"status": {"phase": "Completed", "conditions": [{**done, "lastTransitionTime": "2026-01-01T00:00:00Z"}]}}
    assert connection.patch(f"{jobs}/real/status", forged).status == 403
    whole = api.get(f"{jobs}/real").must()
    assert connection.put(f"{jobs}/real/status", {**whole, **forged}).status == 403
    if role != "view":
        assert connection.patch(f"{jobs}/real", forged).ok
        connection.post(jobs, {**job("born"), **forged}).must()
        assert "status" not in api.get(f"{jobs}/born").must()
    status = api.get(f"{jobs}/real").must().get("status", {})
    assert status.get("phase") != "Completed"
    assert "Complete" not in {c["type"] for c in status.get("conditions", [])}


def test_a_viewer_may_look_and_not_touch(plane, operator_account, namespace, api) -> None:
    jobs = collection(job(), namespace)
    api.post(jobs, job("real")).must()
    with user(plane, namespace, "viewer", "view") as viewer:
        wait_for(lambda: viewer.get(f"{jobs}/real").ok, "the aggregated roles")
        assert viewer.post(jobs, job("mine")).status == 403
        assert viewer.patch(f"{jobs}/real", {"spec": {"cancel": True}}).status == 403
        assert viewer.delete(f"{jobs}/real").status == 403


@pytest.mark.parametrize(("role", "verbs"), [("runtime-view", READ), ("runtime-admin", ALL)])
def test_runtimes_have_roles_of_their_own(plane, api, operator_account, namespace, role, verbs) -> None:
    rules = api.get(f"/apis/rbac.authorization.k8s.io/v1/clusterroles/finetune-operator-{role}").must()["rules"]
    with (
        user(plane, namespace, "platform", "admin") as platform,
        granted_everywhere(api, f"platform-{role}", (namespace, "platform"), rules),
    ):
        wait_for(lambda: may(platform, "finetuneruntimes", "") == verbs, "the role")
        made = platform.post(RUNTIMES, runtime("of-the-platform"))
        assert made.status == (201 if verbs == ALL else 403)
        platform.delete(f"{RUNTIMES}/of-the-platform")


def test_an_editor_cannot_reach_a_runtime(plane, api, operator_account, namespace) -> None:
    api.post(RUNTIMES, runtime("theirs")).must()
    try:
        with user(plane, namespace, "editor", "admin") as editor:
            wait_for(lambda: "list" in may(editor, "finetunejobs", namespace), "the aggregated roles")
            assert editor.post(RUNTIMES, runtime("mine")).status == 403
            opened = {"spec": {"access": {"secrets": ["*"]}, "allowRemoteCode": True}}
            assert editor.patch(f"{RUNTIMES}/theirs", opened).status == 403
            assert editor.delete(f"{RUNTIMES}/theirs").status == 403
    finally:
        api.delete(f"{RUNTIMES}/theirs")


def test_the_role_that_may_write_runtimes_joins_no_role_of_kubernetes(api, operator_account) -> None:
    path = "/apis/rbac.authorization.k8s.io/v1/clusterroles/finetune-operator-runtime-admin"
    labels = api.get(path).must()["metadata"]["labels"]
    assert not [label for label in labels if label.startswith("rbac.authorization.k8s.io/aggregate-to-")]
