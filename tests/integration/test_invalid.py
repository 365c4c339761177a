"""Every file in fixtures/invalid is refused by the API server with the message of its first line.

One document is a create; two are an update from the first to the second, whose status is set through the status
subresource. A message is the sentence of a rule, or `path bound` where a bound is broken.
"""

from __future__ import annotations

from typing import Any

import pytest

from apiserver import Api
from judges import Verdict, as_kubectl_sends, collection, server_verdict, verdict_of
from manifests import INVALID, expected_message, read


@pytest.mark.parametrize("path", INVALID, ids=lambda path: path.stem)
def test_refused_by_the_api_server_with_its_message(api, namespace, path) -> None:
    *old, new = read(path)
    verdict = _update(api, namespace, *old, new) if old else server_verdict(api, new, namespace)
    assert expected_message(path) in verdict.refusals


def test_kubectl_shows_the_sentence(plane, namespace) -> None:
    path = next(p for p in INVALID if p.stem == "model-and-checkpoint")
    done = plane.run("kubectl", "apply", "--namespace", namespace, "--filename", str(path))
    assert done.returncode == 1
    assert expected_message(path) in done.stderr


def _update(api: Api, namespace: str, old: dict[str, Any], new: dict[str, Any]) -> Verdict:
    where = collection(old, namespace)
    made = api.post(where, as_kubectl_sends(old)).must()
    name, status = made["metadata"]["name"], old.get("status")
    if status:
        made = api.patch(f"{where}/{name}/status", {"status": status}).must()
    new["metadata"]["resourceVersion"] = made["metadata"]["resourceVersion"]
    return verdict_of(api.put(f"{where}/{name}?fieldValidation=Strict", as_kubectl_sends(new)))
