"""Every line of the threat model names a test, and every test that it names is there."""

from __future__ import annotations

import ast
import re

import pytest

from manifests import ROOT

PAGE = (ROOT / "docs" / "security.md").read_text()
THREATS = [line for line in PAGE.split("\n## Threats\n", 1)[1].splitlines() if line.strip()]
LINES = [line for line in THREATS if not line.startswith("### ")]
TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def test_the_page_has_threats() -> None:
    assert len(LINES) > 30


@pytest.mark.parametrize("line", LINES, ids=[line[2:42] for line in LINES])
def test_a_line_ends_with_a_test_that_exists(line) -> None:
    assert re.fullmatch(r"- [A-Z][^`]*\. " + TEST.pattern + r"( " + TEST.pattern + ")*", re.sub(r"`\w+`", "x", line))
    for file, name in TEST.findall(line):
        tree = ast.parse((ROOT / file).read_text())
        assert name in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}, f"{file}::{name}"
