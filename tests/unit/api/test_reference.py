"""The reference pages hold every field of the schema, in tables that Markdown takes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from finetune_api.crd import job_crd, runtime_crd
from finetune_api.reference import reference_page
from specs import validations

CRDS = pytest.mark.parametrize("crd", [job_crd(), runtime_crd()], ids=["job", "runtime"])


@CRDS
def test_every_field_stands_below_the_path_of_its_block(crd):
    page = reference_page(crd)
    schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    blocks = dict(re.findall(r"### `(.*?)`\n(.*?)(?=\n##|\Z)", page, re.DOTALL))
    expected = {"spec": schema["properties"]["spec"], "status": schema["properties"].get("status", {})}
    wanted = [pair for path, field in expected.items() for pair in described(path, field)]
    assert len(wanted) > 60
    assert [pair for pair in wanted if f"`{pair[1]}`" not in blocks.get(pair[0], "")] == []


@CRDS
def test_every_row_has_three_cells(crd):
    rows = [line for line in reference_page(crd).splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {4}


@CRDS
def test_every_sentence_of_a_rule_is_there(crd):
    page = reference_page(crd).replace("&lt;", "<").replace("\\", "")
    assert [rule["message"] for rule in validations(crd) if rule["message"] not in page] == []


def described(path: str, schema: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(path of the block, field) of everything below `path`."""
    for name, field in schema.get("properties", {}).items():
        yield path, name
        inner = field.get("items", field)
        yield from described(f"{path}.{name}{'[]' if 'items' in field else ''}", inner)
