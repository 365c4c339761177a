"""Manifests on disk, read as YAML 1.2 (`1e-5` is a number), and the folders that tests look into."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))
INVALID = sorted((ROOT / "tests" / "fixtures" / "invalid").glob("*.yaml"))
KINDS = {"FineTuneJob": "finetunejobs", "FineTuneRuntime": "finetuneruntimes"}


def documents(text: str) -> list[dict[str, Any]]:
    """The documents of a YAML text."""
    yaml = YAML(typ="safe", pure=True)
    yaml.version = (1, 2)
    return [document for document in yaml.load_all(text) if document is not None]


def read(path: Path) -> list[dict[str, Any]]:
    """The documents of a YAML file."""
    return documents(path.read_text())


def expected_message(path: Path) -> str:
    """What the first line, `# message: ...`, says a refusal must say."""
    first = path.read_text().split("\n", 1)[0]
    prefix = "# message: "
    assert first.startswith(prefix), f"{path.name} must begin with {prefix!r}"
    return first.removeprefix(prefix)


def job(name: str = "a-job", **spec: Any) -> dict[str, Any]:
    """A valid SFT job, with parts of its spec replaced."""
    return {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": name},
        "spec": {"model": "org/model", "trainingFile": "pvc://finetune-data/train.jsonl", **spec},
    }


def runtime(name: str = "a-runtime", **spec: Any) -> dict[str, Any]:
    """A valid runtime, with parts of its spec replaced."""
    return {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneRuntime",
        "metadata": {"name": name},
        "spec": {"image": "trainer:1", **spec},
    }


def contains(whole: Any, part: Any) -> bool:
    """Whether `whole` has all of `part`; the API server only adds defaults."""
    if isinstance(part, dict):
        return isinstance(whole, dict) and all(contains(whole.get(key), value) for key, value in part.items())
    if isinstance(part, list):
        return isinstance(whole, list) and len(whole) == len(part) and all(map(contains, whole, part))
    return bool(whole == part)
