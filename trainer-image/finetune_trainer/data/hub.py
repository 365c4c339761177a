"""The Hugging Face Hub: what its client raises, told apart into what the user must mend and what may pass by itself."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from enum import Enum, auto
from fnmatch import fnmatch
from pathlib import Path
from typing import TypeVar

import httpx2
from huggingface_hub import HfApi, constants, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    DisabledRepoError,
    EntryNotFoundError,
    FileMetadataError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    NotASafetensorsRepoError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    SafetensorsParsingError,
)
from huggingface_hub.utils.tqdm import disable_progress_bars

from finetune_api.failures import FailureCode
from finetune_trainer.failures import failed
from finetune_trainer.files import is_full

log = logging.getLogger(__name__)

CONFIG_PATTERNS = ["*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken"]
WEIGHT_PATTERNS = ["*.safetensors"]
CODE_PATTERNS = ["*.py"]
LEFT_OUT = ["*/*", "consolidated*"]
"""Subfolders hold other formats of the same weights (onnx, original); `consolidated` is a second copy of them."""
WAITS = (1.0, 4.0)
"""Seconds before another try where the client itself makes only one; after that the pod ends and is retried."""
PUSH_WAITS = (1.0, 4.0, 16.0, 64.0)
"""The same where a pod's end would cost more: training is done."""
NO_WAITS: tuple[float, ...] = ()

ASKED = (
    HfHubHTTPError,
    httpx2.HTTPError,
    OfflineModeIsEnabled,
    EntryNotFoundError,
    FileMetadataError,
    RuntimeError,
)
"""What the client raises for a Hub that does not give or take what it should; a RuntimeError is an upload's."""

T = TypeVar("T")


class Trouble(Enum):
    """Who has to act."""

    NOT_FOUND = auto()
    """Does not exist, or may not be read with this token."""
    UNSUPPORTED = auto()
    """Exists but is nothing that can be trained."""
    UNREACHABLE = auto()
    """The network or the Hub: may pass by itself."""


class HubFailed(Exception):
    """The Hub did not give what was asked for; the text says why, in words for the user."""

    def __init__(self, trouble: Trouble, problem: str) -> None:
        super().__init__(problem)
        self.trouble = trouble


def has_weights(repo: str, revision: str | None) -> bool:
    """Whether a model repository holds safetensors at `revision` (branch, tag, commit; None = the default branch).

    Raises:
        HubFailed
    """
    info = _ask(lambda: HfApi().model_info(repo, revision=revision), WAITS)
    return any(file.rfilename.endswith(".safetensors") for file in info.siblings or ())


def tensor_shapes(repo: str, commit: str) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor, from the headers of the safetensors files alone.

    Raises:
        HubFailed
    """
    header = _ask(lambda: HfApi().get_safetensors_metadata(repo, revision=commit), WAITS)
    files = header.files_metadata.values()
    return {name: tuple(tensor.shape) for file in files for name, tensor in file.tensors.items()}


def fetch_snapshot(repo: str, revision: str | None, *, weights: bool, offline: bool, code: bool = False) -> str:
    """Download a model's files into the client's cache and return the folder, named by its commit.

    Its code is left out unless `code` says otherwise.

    Raises:
        HubFailed
    """
    disable_progress_bars()
    patterns = _patterns(weights, code)
    return _ask(
        lambda: snapshot_download(
            repo, revision=revision, allow_patterns=patterns, ignore_patterns=LEFT_OUT, local_files_only=offline
        ),
        NO_WAITS if offline else WAITS,
    )


def fetch_one(repo: str, kind: str, path: str, revision: str | None, *, offline: bool) -> tuple[Path, str]:
    """Download one file of a `model` or `dataset` repository and return where it lies, and its commit.

    Raises:
        HubFailed
    """
    disable_progress_bars()
    found = _ask(
        lambda: hf_hub_download(repo, path, repo_type=kind, revision=revision, local_files_only=offline), NO_WAITS
    )
    return Path(found), Path(found).parents[path.count("/")].name


def is_wanted(name: str, *, weights: bool, code: bool) -> bool:
    """Whether a model's file of that name is one that `fetch_snapshot` would download."""
    patterns = _patterns(weights, code)
    return any(fnmatch(name, glob) for glob in patterns) and not any(fnmatch(name, glob) for glob in LEFT_OUT)


def _patterns(weights: bool, code: bool) -> list[str]:
    return [*CONFIG_PATTERNS, *(WEIGHT_PATTERNS if weights else ()), *(CODE_PATTERNS if code else ())]


def make_repository(repo: str) -> None:
    """Make sure that a model repository is there and may be written; a new one is private.

    Raises:
        HubFailed
    """
    _ask(lambda: HfApi().create_repo(repo, private=True, exist_ok=True), WAITS)
    _ask(lambda: HfApi().auth_check(repo, write=True), WAITS)


def push_folder(repo: str, folder: Path, message: str) -> None:
    """Put the files of `folder` into a model repository, in one commit; in none if it has them all.

    Raises:
        HubFailed
    """
    disable_progress_bars()

    def upload() -> None:
        try:
            HfApi().upload_folder(repo_id=repo, folder_path=folder, commit_message=message)
        except ValueError as error:  # of an error page where it expects JSON
            raise RuntimeError from error

    _ask(upload, PUSH_WAITS)


def _ask(call: Callable[[], T], waits: tuple[float, ...]) -> T:
    """Call the Hub, and again after each of `waits` (seconds) while it is the Hub that fails."""
    for wait in (*waits, None):
        try:
            return _with_room(call)
        except ASKED as error:
            failure = HubFailed(*_judge(error))
            if failure.trouble is not Trouble.UNREACHABLE or wait is None:
                raise failure from error
            log.warning("the Hub does not answer, trying again in %s s: %s", wait, failure)
            time.sleep(wait)
        except HFValidationError as error:
            raise HubFailed(Trouble.NOT_FOUND, "it is no name of a repository") from error
        except NotASafetensorsRepoError as error:
            raise HubFailed(Trouble.UNSUPPORTED, "it has no weights in safetensors format") from error
        except SafetensorsParsingError as error:
            raise HubFailed(Trouble.UNSUPPORTED, "the header of its weights is damaged") from error
    raise AssertionError("the last try either returns or raises")


def _with_room(call: Callable[[], T]) -> T:
    """Raises: RunFailed: StorageFull: the client's cache is full. Its part in Rust raises a RuntimeError then."""
    try:
        return call()
    except (OSError, RuntimeError) as error:
        if is_full(error):
            raise failed(FailureCode.STORAGE_FULL, uri=constants.HF_HUB_CACHE) from error
        raise


def _judge(error: BaseException) -> tuple[Trouble, str]:
    """Who has to act on `error`, and why. A cache miss is judged by what kept the client from the network."""
    if isinstance(error, LocalEntryNotFoundError):
        cause = error.__cause__
        if cause is None or isinstance(cause, OfflineModeIsEnabled):
            return Trouble.UNREACHABLE, "it is not in the cache, and nothing else may be asked"
        return _judge(cause)
    if isinstance(error, RuntimeError) and isinstance(error.__cause__, ASKED):
        return _judge(error.__cause__)
    if isinstance(error, GatedRepoError):
        return Trouble.NOT_FOUND, "it is gated and the token may not read it"
    if isinstance(error, RepositoryNotFoundError):
        return Trouble.NOT_FOUND, "there is no such repository, or the token may not read it"
    if isinstance(error, RevisionNotFoundError):
        return Trouble.NOT_FOUND, "there is no such revision"
    if isinstance(error, EntryNotFoundError | DisabledRepoError):
        return Trouble.NOT_FOUND, "there is no such file"
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        forbidden = status in (401, 403, 404)
        return (Trouble.NOT_FOUND if forbidden else Trouble.UNREACHABLE), f"the Hub answered {status}"
    if isinstance(error, FileMetadataError | RuntimeError):
        return Trouble.UNREACHABLE, "the endpoint does not answer like a Hub"
    return Trouble.UNREACHABLE, type(error).__name__
