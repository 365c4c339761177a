"""kubectl, for scripts: what it prints, and objects as dicts."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

Manifest = dict[str, Any]


def kubectl(*arguments: str, stdin: str | None = None) -> str:
    """Run kubectl; a failure ends the program with what kubectl said."""
    result = subprocess.run(["kubectl", *arguments], input=stdin, capture_output=True, text=True, check=False)
    if result.returncode:
        sys.exit(f"kubectl {' '.join(arguments)}: {result.stderr.strip()}")
    return result.stdout.rstrip()


def get_job(namespace: str, name: str) -> Manifest:
    """A FineTuneJob as the API server has it."""
    return dict(json.loads(kubectl("-n", namespace, "get", "ftj", name, "-o", "json")))


def apply(namespace: str, example: Path, change: Callable[[Manifest], Manifest]) -> str:
    """Apply a manifest whose spec `change` may alter, and return its name."""
    manifest = YAML(typ="safe", pure=True).load(example)
    manifest["spec"] = change(manifest["spec"])
    kubectl("-n", namespace, "apply", "-f", "-", stdin=json.dumps(manifest))
    return str(manifest["metadata"]["name"])
