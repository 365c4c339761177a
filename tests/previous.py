"""The release that users have before this one: its packaged chart, and its operator as a wheel that runs as it is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

from manifests import ROOT

FOLDER = ROOT / "tests" / "fixtures" / "previous"
CHART = FOLDER / "finetune-operator-0.1.0.tgz"
WHEEL = FOLDER / "finetune_operator-0.1.0-py3-none-any.whl"
JUDGE = """
import json, sys
from pydantic import ValidationError
from {module} import {model} as Model
def judge(line):
    try:
        return {{"read": Model.model_validate_json(line).model_dump(mode="json")}}
    except ValidationError as error:
        return {{"refused": [[".".join(map(str, e["loc"])), e["type"]] for e in error.errors()]}}
print(json.dumps([judge(line) for line in json.load(sys.stdin)]))
"""


def as_previous(module: str, model: str, documents: list[str]) -> list[dict[str, Any]]:
    """What the previous release's `model` makes of JSON texts: {"read": values} or {"refused": [[path, type], ...]}."""
    done = subprocess.run(
        [sys.executable, "-c", JUDGE.format(module=module, model=model)],
        input=json.dumps(documents),
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(WHEEL)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return list(json.loads(done.stdout))
