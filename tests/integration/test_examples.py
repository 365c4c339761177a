"""Every document of every example is accepted, by a dry run, by kubectl, and by pydantic with the same reading."""

from __future__ import annotations

import pytest

from judges import disagreement, pydantic_verdict, server_verdict
from manifests import EXAMPLES, KINDS, read


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_is_read_alike_by_both_judges(api, namespace, path) -> None:
    ours = [document for document in read(path) if document["kind"] in KINDS]
    assert ours
    for document in ours:
        server = server_verdict(api, document, namespace)
        assert server.accepted, server.refusals
        assert disagreement(server, pydantic_verdict(document)) is None


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_is_applied_and_a_second_time_changes_nothing(plane, namespace, path) -> None:
    def version() -> str:
        return plane.kubectl("get", *where, "--output", "jsonpath={..metadata.resourceVersion}")

    where = ["--namespace", namespace, "--filename", str(path)]
    plane.kubectl("apply", *where)
    first = version()
    plane.kubectl("apply", *where)
    assert version() == first
    plane.kubectl("delete", *where, "--wait=false")  # a claim is let go by a controller that does not run here
