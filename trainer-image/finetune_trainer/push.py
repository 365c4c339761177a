"""output.hfRepo: the final weights on the Hub as well.

Whether it may be written is found out before anything is trained. A push that is made again, after a restart, finds
its files there and commits nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import constants

from finetune_api.failures import FailureCode
from finetune_api.trainer import TrainerConfig
from finetune_trainer.data.hub import HubFailed, Trouble, make_repository, push_folder
from finetune_trainer.failures import failed


def check_repository(config: TrainerConfig) -> None:
    """Make the repository of `config` if it names one that is missing.

    Raises:
        RunFailed: HubNotWritable.
    """
    if config.hf_repo is not None:
        with _writing(config.hf_repo):
            make_repository(config.hf_repo)


def push(config: TrainerConfig, folder: Path, step: int) -> str | None:
    """Push the weights in `folder`, of optimiser step `step`; returns the repository's page, None where none is named.

    Raises:
        RunFailed: HubNotWritable.
    """
    if config.hf_repo is None:
        return None
    with _writing(config.hf_repo):
        push_folder(config.hf_repo, folder, f"FineTuneJob {config.job.namespace}/{config.job.name}, step {step}")
    return f"{constants.ENDPOINT}/{config.hf_repo}"


@contextmanager
def _writing(repo: str) -> Iterator[None]:
    try:
        yield
    except HubFailed as problem:
        unreachable = problem.trouble is Trouble.UNREACHABLE
        why = problem if unreachable else "there is none, or the token of hfTokenSecretRef may not write it"
        raise failed(FailureCode.HUB_NOT_WRITABLE, repo=repo, problem=why) from problem
