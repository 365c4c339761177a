"""The client turns each answer of an API server into the one error that says what to do."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web
from kubernetes.aio import client as kubernetes_client
from ruamel.yaml import YAML

from finetune_operator import client
from finetune_operator.client import (
    FINETUNE_JOBS,
    JOBS,
    PODS,
    RUNTIMES,
    AlreadyExists,
    Cluster,
    Conflict,
    Gone,
    NotFound,
    Refused,
    Unavailable,
    as_yaml,
)

Handler = Callable[[web.Request], Awaitable[web.Response]]
Use = Callable[[Cluster], Awaitable[Any]]


def against(handler: Handler, use: Use) -> Any:
    """Run `use` with a client of a server that answers as `handler` says."""

    async def story() -> Any:
        application = web.Application()
        application.router.add_route("*", "/{path:.*}", handler)
        runner = web.AppRunner(application, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        configuration = kubernetes_client.Configuration(host=f"http://127.0.0.1:{runner.addresses[0][1]}")
        configuration.api_key["BearerToken"] = "Bearer t0ken"
        cluster = Cluster(kubernetes_client.ApiClient(configuration))
        try:
            return await use(cluster)
        finally:
            await cluster.close()
            await runner.cleanup()

    return asyncio.run(story())


def status(code: int, reason: str, message: str = "why", **headers: str) -> Handler:
    async def answer(_: web.Request) -> web.Response:
        return web.json_response({"kind": "Status", "reason": reason, "message": message}, status=code, headers=headers)

    return answer


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (status(404, "NotFound"), NotFound),
        (status(409, "AlreadyExists"), AlreadyExists),
        (status(409, "Conflict"), Conflict),
        (status(403, "Forbidden"), Refused),
        (status(422, "Invalid"), Refused),
        (status(401, "Unauthorized"), Unavailable),
        (status(500, "InternalError"), Unavailable),
        (status(429, "TooManyRequests", **{"Retry-After": "7"}), Unavailable),
        (status(410, "Expired"), Gone),
    ],
)
def test_an_answer_becomes_the_error_that_says_what_to_do(answer, error):
    with pytest.raises(error) as raised:
        against(answer, lambda cluster: cluster.create(JOBS, {"metadata": {"name": "a", "namespace": "n"}}))
    assert type(raised.value) is error
    assert "why" in str(raised.value)


SERVED = "Wed, 21 Oct 2026 07:28:00 GMT"


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"Retry-After": "7"}, 7.0),
        ({"Retry-After": "0.5"}, 0.5),
        ({"Retry-After": "-3"}, 0.0),
        ({"Retry-After": "nan"}, 0.0),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": "Wed, 21 Oct 2026 07:28:09 GMT"}, 9.0),
        ({"Retry-After": "Wed, 21 Oct 2026 07:27:00 GMT"}, 0.0),
        ({"Retry-After": "Wed, 21 Oct 2026 07:28:09"}, None),
    ],
)
def test_a_server_may_say_when_to_ask_again(headers, seconds):
    answer = status(429, "TooManyRequests", Date=SERVED, **headers)
    with pytest.raises(Unavailable) as raised:
        against(answer, lambda cluster: cluster.get(PODS, "n", "a"))
    assert raised.value.retry_after == seconds


@pytest.mark.parametrize("body", ["<html>log in first", "[]", '{"kind": "Po'])
def test_a_success_that_is_no_object_is_no_answer(body):
    async def answer(_: web.Request) -> web.Response:
        return web.Response(text=body)

    for use in (lambda cluster: cluster.get(PODS, "n", "a"), lambda cluster: cluster.list(PODS)):
        with pytest.raises(Unavailable, match="no object"):
            against(answer, use)


def test_an_object_that_is_no_list_is_no_answer_to_a_list():
    async def answer(_: web.Request) -> web.Response:
        return web.json_response({"welcome": True})

    with pytest.raises(Unavailable, match="no list"):
        against(answer, lambda cluster: cluster.list(PODS))


def test_a_list_brings_nobodys_word_on_who_owns_which_field():
    """For a job it is most of what its metadata weighs, and a list holds thousands."""

    async def answer(_: web.Request) -> web.Response:
        fields = [{"manager": "kubectl", "fieldsV1": {"f:spec": {}}}]
        return web.json_response({"metadata": {}, "items": [{"metadata": {"name": "a", "managedFields": fields}}]})

    assert against(answer, lambda cluster: cluster.list(FINETUNE_JOBS)) == [{"metadata": {"name": "a"}}]


def test_a_connection_that_breaks_in_the_middle_of_an_answer_is_unavailable():
    async def answer(request: web.Request) -> web.Response:
        response = web.StreamResponse(headers={"Content-Length": "100"})
        await response.prepare(request)
        await response.write(b'{"a": 1')
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    with pytest.raises(Unavailable):
        against(answer, lambda cluster: cluster.get(PODS, "n", "a"))


def test_an_answer_that_is_no_status_is_quoted():
    async def answer(_: web.Request) -> web.Response:
        return web.Response(text="<html>bad gateway", status=502)

    with pytest.raises(Unavailable, match="<html>bad gateway"):
        against(answer, lambda cluster: cluster.get(PODS, "n", "a"))


def test_a_server_that_is_not_there_is_unavailable():
    async def story() -> None:
        cluster = Cluster(kubernetes_client.ApiClient(kubernetes_client.Configuration(host="http://127.0.0.1:9")))
        try:
            with pytest.raises(Unavailable):
                await cluster.get(PODS, "n", "a")
        finally:
            await cluster.close()

    asyncio.run(story())


def test_a_status_is_applied_with_its_preconditions():
    asked: list[tuple[str, dict[str, str], str, Any]] = []

    async def answer(request: web.Request) -> web.Response:
        asked.append((request.path, dict(request.query), request.content_type, json.loads(await request.read())))
        assert request.headers["Authorization"] == "Bearer t0ken"
        return web.json_response({})

    manifest = {"metadata": {"name": "a", "namespace": "n", "uid": "u", "resourceVersion": "5"}, "status": {}}
    against(answer, lambda cluster: cluster.apply_status(FINETUNE_JOBS, manifest))
    against(answer, lambda cluster: cluster.hold("n", "a-train", "u", suspend=True, mark="UserRequested: suspended"))
    against(answer, lambda cluster: cluster.delete(FINETUNE_JOBS, "n", "a", "u", "5"))
    (path, query, content, body), (other_path, _, other_content, other_body), (*_, last_body) = asked
    assert last_body == {"preconditions": {"uid": "u", "resourceVersion": "5"}, "propagationPolicy": "Background"}
    assert path == "/apis/finetune.dev/v1alpha1/namespaces/n/finetunejobs/a/status"
    assert query == {"fieldManager": "finetune-operator", "force": "true"}
    assert (content, body) == ("application/apply-patch+yaml", manifest)
    assert other_path == "/apis/batch/v1/namespaces/n/jobs/a-train"
    assert other_content == "application/merge-patch+json"
    mark: dict[str, str | None] = {"finetune.dev/stop": "UserRequested: suspended"}
    assert other_body == {"metadata": {"uid": "u", "annotations": mark}, "spec": {"suspend": True}}


def test_what_belongs_to_kueue_is_changed_by_its_own_fields():
    asked = []

    async def answer(request: web.Request) -> web.Response:
        asked.append((request.path, await request.json()))
        return web.json_response({})

    labels = {"kueue.x-k8s.io/queue-name": None, "finetune.dev/queue-name": "team"}
    against(answer, lambda cluster: cluster.hold("n", "a", "u", suspend=None, mark=None, labels=labels))
    against(answer, lambda cluster: cluster.activate("n", "w", "u", active=False))
    (job, patch), (workload, activation) = asked
    assert job == "/apis/batch/v1/namespaces/n/jobs/a"
    assert patch == {"metadata": {"uid": "u", "annotations": {"finetune.dev/stop": None}, "labels": labels}}
    assert workload == "/apis/kueue.x-k8s.io/v1beta1/namespaces/n/workloads/w"
    assert activation == {"metadata": {"uid": "u"}, "spec": {"active": False}}


def test_a_list_is_read_to_its_last_page():
    async def answer(request: web.Request) -> web.Response:
        page = int(request.query.get("continue", "0"))
        assert request.query["labelSelector"] == "a=b"
        more = {"continue": str(page + 1)} if page < 2 else {}
        return web.json_response({"metadata": more, "items": [{"n": page}]})

    found = against(answer, lambda cluster: cluster.list(RUNTIMES, labels="a=b"))
    assert found == [{"n": 0}, {"n": 1}, {"n": 2}]


def test_a_list_whose_rest_is_gone_is_read_again_in_one_piece():
    asked: list[dict[str, str]] = []

    async def answer(request: web.Request) -> web.Response:
        asked.append(dict(request.query))
        if "continue" in request.query:
            return web.json_response({"kind": "Status", "reason": "Expired"}, status=410)
        more = {"continue": "old"} if "limit" in request.query else {}
        return web.json_response({"metadata": more, "items": [{"n": 1}]})

    assert against(answer, lambda cluster: cluster.list(RUNTIMES, labels="a=b")) == [{"n": 1}]
    assert [set(query) for query in asked] == [
        {"labelSelector", "limit"},
        {"labelSelector", "limit", "continue"},
        {"labelSelector"},
    ]


def test_the_token_of_a_pod_is_read_from_its_file_each_time_and_a_missing_file_is_no_end(tmp_path, monkeypatch):
    (tmp_path / "token").write_text("old\n")
    monkeypatch.setattr(client.kubernetes_config, "load_incluster_config", lambda **_: None)
    monkeypatch.setattr(client, "IN_CLUSTER", str(tmp_path / "token"))

    async def story() -> None:
        cluster = await Cluster.connect(None, in_cluster=True)
        try:
            (tmp_path / "token").write_text("new\n")
            assert (await cluster.credentials()).authorization == "Bearer new"
            (tmp_path / "token").unlink()
            with pytest.raises(Unavailable, match="FileNotFoundError"):
                await cluster.get(PODS, "n", "a")
        finally:
            await cluster.close()

    asyncio.run(story())


@pytest.mark.parametrize(
    "text", ["plain", "\U0001f600", "\\ud83d\\ude00", "a\nb\x00\x7f\x85\u2028\ufeff\uffff", '"{}"']
)
def test_a_status_travels_as_json_that_a_reader_of_yaml_reads_alike(text):
    body = as_yaml({"status": {text: text}})
    assert json.loads(body) == {"status": {text: text}}
    assert YAML(typ="safe", pure=True).load(body.decode()) == {"status": {text: text}}
