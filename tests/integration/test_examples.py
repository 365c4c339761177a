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
    where = ["--namespace", namespace, "--filename", str(path)]
    first = plane.kubectl("apply", *where).splitlines()
    assert {line.rsplit(" ", 1)[1] for line in first} == {"created"}
    again = plane.kubectl("apply", *where).splitlines()
    assert [line.removesuffix(" unchanged") for line in again] == [line.removesuffix(" created") for line in first]
    plane.kubectl("delete", *where, "--wait=false")  # a claim is let go by a controller that does not run here
