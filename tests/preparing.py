"""The prepare step for tests: five good pairs to prepare, a listener that hears nothing, and how it ends."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from configs import trainer_config
from finetune_api.failures import Failure
from finetune_api.trainer import TrainerConfig
from finetune_trainer.failures import RunFailed
from finetune_trainer.prepare import prepare
from rows import preference, write_rows


def config_over(model: Path, folder: Path) -> Callable[..., TrainerConfig]:
    """A configuration over five good pairs in `folder`; fields replace any of it."""
    rows = write_rows(folder / "train.jsonl", *(preference(f"question {i}") for i in range(5)))

    def config(**fields: Any) -> TrainerConfig:
        return trainer_config(
            **{
                "start": {"model": f"file://{model}"},
                "training_file": f"file://{rows}",
                "output_uri": f"file://{folder}/out",
                **fields,
            }
        )

    return config


def quiet(**fields: object) -> None:
    pass


def failure_of(config: TrainerConfig) -> Failure:
    with pytest.raises(RunFailed) as ended:
        prepare(config, quiet)
    return ended.value.failure
