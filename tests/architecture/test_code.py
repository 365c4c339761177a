"""The shape of the code: sizes, layers, and no package that hides a standard module."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import pytest

from manifests import ROOT
from repository import tracked

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
MEDIAN_FUNCTION_LINES = 15
PYTHON = tracked("*.py")
PRODUCT = [path for path in PYTHON if path.is_relative_to("operator") or path.is_relative_to("trainer-image")]


@pytest.mark.parametrize("path", PYTHON, ids=str)
def test_a_file_is_one_idea(path: Path) -> None:
    assert len((ROOT / path).read_text().splitlines()) < MAX_FILE_LINES


@pytest.mark.parametrize("path", PYTHON, ids=str)
def test_a_function_fits_a_screen(path: Path) -> None:
    long = {name: lines for name, lines in _functions(path) if lines >= MAX_FUNCTION_LINES}
    assert not long, f"split {long}"


def test_most_functions_are_short() -> None:
    assert median(lines for path in PRODUCT for _, lines in _functions(path)) < MEDIAN_FUNCTION_LINES


@pytest.mark.parametrize("path", PRODUCT, ids=str)
def test_a_module_says_why_it_exists(path: Path) -> None:
    assert ast.get_docstring(ast.parse((ROOT / path).read_text()))


@pytest.mark.parametrize("folder", ["operator", "trainer-image"])
def test_a_source_folder_is_no_package(folder: str) -> None:
    """`operator/__init__.py` would hide the standard library's operator."""
    assert not (ROOT / folder / "__init__.py").exists()


def test_nothing_unfinished_is_kept() -> None:
    marks = ["NotImplemented" + "Error", "TO" + "DO", "FIX" + "ME", "X" * 3, "pytest." + "skip", "x" + "fail("]
    found = [(str(path), mark) for path in PYTHON for mark in marks if mark in (ROOT / path).read_text()]
    assert not found


def test_imports_follow_the_layers() -> None:
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def _functions(path: Path) -> Iterator[tuple[str, int]]:
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            yield f"{path}:{node.name}", node.end_lineno - node.lineno + 1
