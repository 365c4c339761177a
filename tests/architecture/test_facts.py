"""One home for each fact: names, versions, generated files, and documents that tell of what is there."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from finetune_api.crd import job_crd, runtime_crd
from finetune_api.failures import FAILURES
from finetune_api.names import GROUP
from finetune_api.report import WarningCode
from finetune_api.status import AttemptReason, Phase, Reason
from finetune_operator.metrics import ENDS
from manifests import ROOT, read
from repository import tracked

SIZES = {"string": "maxLength", "array": "maxItems"}
CODE = tracked("operator/*.py", "trainer-image/*.py", "hack/*.py", "hack/*.sh")


def test_generated_files_are_up_to_date() -> None:
    from generate import differing

    assert differing() == [], "run `make generate`"


def test_the_version_stands_in_one_place() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    chart = read(ROOT / "charts/finetune-operator/Chart.yaml")[0]
    assert (chart["version"], chart["appVersion"]) == (version, version)


@pytest.mark.parametrize("path", CODE, ids=str)
def test_the_group_has_one_home(path: Path) -> None:
    assert (GROUP in (ROOT / path).read_text()) == (path == Path("operator/finetune_api/names.py"))


@pytest.mark.parametrize("crd", [job_crd(), runtime_crd()], ids=["job", "runtime"])
def test_everything_in_a_crd_is_bounded(crd: dict[str, Any]) -> None:
    """Without sizes the API server cannot bound the cost of a rule."""
    schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    unbounded = [path for path, node in _nodes(schema) if not _bounded(path, node)]
    assert not unbounded


@pytest.mark.parametrize("crd", [job_crd(), runtime_crd()], ids=["job", "runtime"])
def test_every_number_of_a_spec_has_two_bounds(crd: dict[str, Any]) -> None:
    spec = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    numbers = [(path, node) for path, node in _nodes(spec, "spec") if node.get("type") in ("integer", "number")]
    assert numbers
    assert [path for path, node in numbers if not {"minimum", "maximum"} <= node.keys()] == []


@pytest.mark.parametrize("crd", [job_crd(), runtime_crd()], ids=["job", "runtime"])
def test_every_field_is_described(crd: dict[str, Any]) -> None:
    schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    fields = [(path, node) for path, node in _nodes(schema) if "." in path and not path.endswith(("[]", "{}"))]
    assert [path for path, node in fields if not node.get("description")] == []


def test_help_lists_every_target() -> None:
    text = (ROOT / "Makefile").read_text()
    phony = {name for line in re.findall(r"^\.PHONY:(.*)$", text, re.M) for name in line.split()}
    helped = set(re.findall(r"^([a-z0-9-]+):.*?## \S", text, re.M))
    assert phony == helped


def test_documents_name_targets_that_exist() -> None:
    helped = set(re.findall(r"^([a-z0-9-]+):.*?## \S", (ROOT / "Makefile").read_text(), re.M))
    for path in tracked("*.md", ".ci/*", ".github/*"):
        named = set(re.findall(r"(?:`|^|run: )make ([a-z0-9-]+)", (ROOT / path).read_text(), re.M))
        assert named <= helped, f"{path} names {named - helped}"


@pytest.mark.parametrize("path", tracked("*.md"), ids=str)
def test_links_lead_somewhere(path: Path) -> None:
    links = re.findall(r"\]\((?!https?://|#)([^)#\s]+)", (ROOT / path).read_text())
    assert [link for link in links if not (ROOT / path.parent / link).exists()] == []


def test_the_readme_tree_names_what_is_there() -> None:
    """The tree: a fenced block whose lines are drawn with branches, one path at each."""
    blocks = re.findall(r"```[a-z]*\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    for block in blocks:
        for path in _tree_paths(block):
            assert (ROOT / path).exists(), f"README.md names {path}"
    named = {path for block in blocks for path in _tree_paths(block)}
    modules = {str(path) for path in tracked("operator/*.py", "trainer-image/*.py") if path.name != "__init__.py"}
    assert modules - named == set()


def test_each_reason_has_its_row_with_what_to_do() -> None:
    sections = {title: _rows(text) for title, text in _sections(ROOT / "docs/operations.md").items()}
    attempts, causes = sections.pop("Attempts: `status.attempts`"), sections.pop("Causes that the trainer names")
    conditions = {reason for rows in sections.values() for reason in rows}
    assert conditions == set(Reason) | set(WarningCode), "a reason without its row, or one that is none"
    assert set(attempts) == set(AttemptReason)
    assert causes == {code.value: f"{exit_code:d}" for code, (exit_code, _) in FAILURES.items()}


def test_each_end_of_a_job_is_counted_from_nought() -> None:
    """A counter that appears with its first job would not show that one."""
    sections = {title.partition("=")[0]: _rows(text) for title, text in _sections(ROOT / "docs/operations.md").items()}
    assert {*ENDS[Phase.COMPLETED]} == sections["Complete"].keys()
    assert {*ENDS[Phase.CANCELLED], *ENDS[Phase.FAILED]} == sections["Failed"].keys()


def _sections(path: Path) -> dict[str, str]:
    """Title to text of each part that is about reasons."""
    _, _, about = path.read_text().partition("## What each reason means")
    parts = about.partition("\n## ")[0].split("\n### ")[1:]
    return {title: text for title, _, text in (part.partition("\n") for part in parts)}


def _rows(text: str) -> dict[str, str]:
    """First cell, a reason or several, to the second cell of each row of the tables."""
    rows = re.findall(r"^\| ([A-Z][A-Za-z, ]+) \| ([^|]*) \|", text, re.M)
    return {reason: second for reasons, second in rows for reason in reasons.split(", ")}


@pytest.mark.parametrize("path", tracked(), ids=str)
def test_a_file_tells_nothing_of_the_machine_it_was_made_on(path: Path) -> None:
    text = (ROOT / path).read_bytes().decode(errors="replace")
    assert [folder for folder in (f"{ROOT}/", f"{Path.home()}/") if folder in text] == []
    assert re.findall(r"\b(?:[a-z0-9-]+\.)+(?:internal|corp|lan)\b", text) == []


def _nodes(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, schema
    for name, child in schema.get("properties", {}).items():
        if path or name in ("spec", "status"):
            yield from _nodes(child, f"{path}.{name}" if path else name)
    if "items" in schema:
        yield from _nodes(schema["items"], f"{path}[]")
    if isinstance(schema.get("additionalProperties"), dict):
        yield from _nodes(schema["additionalProperties"], f"{path}{{}}")


def _bounded(path: str, node: dict[str, Any]) -> bool:
    kind = node.get("type")
    if kind in SIZES:
        return "enum" in node or SIZES[kind] in node
    if "additionalProperties" in node:
        return "maxProperties" in node
    if node.get("x-kubernetes-int-or-string"):
        return "maxLength" in node
    return True


def _tree_paths(block: str) -> Iterator[str]:
    """Paths of a tree such as `tree` draws; a line begins with names, two spaces apart, and goes on with words."""
    parents: list[tuple[int, str]] = []
    for line in block.splitlines():
        found = re.match(r"^((?:│|├|└|─|\s)+)([A-Za-z0-9._/-]+)", line)
        if not found or not re.search("[├└]", line):
            continue
        depth, name = len(found.group(1)), found.group(2)
        while parents and parents[-1][0] >= depth:
            parents.pop()
        folder = [parent for _, parent in parents]
        parents.append((depth, name.rstrip("/")))
        beside = re.findall(r"(?<=  )[a-z0-9_]+\.(?:py|sh)\b", line)
        yield from ("/".join([*folder, each.rstrip("/")]) for each in (name, *beside))
