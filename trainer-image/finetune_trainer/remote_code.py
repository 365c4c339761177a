"""Python code that comes with a model: run only where the runtime allows it, and only where nothing else will do.

transformers' own class of a model goes before one that the model brings, so that an allowed runtime still runs no
foreign code for the models that it knows.
"""

from __future__ import annotations

import json
from pathlib import Path

from transformers.models.auto.auto_mappings import CONFIG_MAPPING_NAMES

from finetune_api.failures import FailureCode
from finetune_trainer.failures import failed

CONFIG_FILE = "config.json"


def brings_code(folder: Path) -> bool:
    """Whether the model in `folder` is of a kind that transformers does not know and names classes of its own."""
    try:
        config = json.loads((folder / CONFIG_FILE).read_text())
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and bool(config.get("auto_map")) and not _known(config.get("model_type"))


def refuse_code(uri: str, folder: Path, allowed: bool) -> None:
    """Stop before the code of the model `uri` would be needed.

    Raises:
        RunFailed: RemoteCode.
    """
    if not allowed and brings_code(folder):
        raise failed(FailureCode.REMOTE_CODE, uri=uri)


def code_files(folder: Path) -> list[Path]:
    """The code without which the model in `folder` cannot be loaded."""
    return sorted(folder.glob("*.py")) if brings_code(folder) else []


def _known(model_type: object) -> bool:
    return isinstance(model_type, str) and model_type in CONFIG_MAPPING_NAMES
