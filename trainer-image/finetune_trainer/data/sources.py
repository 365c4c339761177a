"""From the URIs of a configuration to files on this machine: mounted volumes, and the Hub.

Every way to fail becomes one of four named causes: the model or the data is not there (the user's to mend), or it
could not be reached (tried again by a new pod).
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from finetune_api.failures import FailureCode
from finetune_api.uris import OBJECT_STORES, UriParts, parse_uri
from finetune_trainer.data import hub
from finetune_trainer.data.hub import HubFailed, Trouble
from finetune_trainer.failures import RunFailed, failed
from finetune_trainer.files import weight_files
from finetune_trainer.objects import asking, filesystem, names_below
from finetune_trainer.volumes import OutsideVolume, locate, locate_folder

DATASETS = "datasets/"
NO_WEIGHTS = "it has no weights in safetensors format"


@dataclass(frozen=True, slots=True)
class FetchedModel:
    """A model's folder on this machine."""

    path: Path
    revision: str | None
    """Commit on the Hub; None for a folder of a volume."""


def fetch_file(uri: str, mounts: Mapping[str, str], offline: bool, field: str = "trainingFile") -> Path:
    """A data file, downloaded when it lies on the Hub; `field` names it in the error.

    Raises:
        RunFailed: DataNotFound, DataUnreachable.
    """
    parts = parse_uri(uri)
    try:
        path = _fetch_from_hub(parts, offline) if parts.scheme == "hf" else locate(uri, mounts)
        with path.open("rb"):
            return path
    except OutsideVolume as problem:
        raise failed(FailureCode.DATA_UNREACHABLE, uri=uri, problem=problem) from problem
    except HubFailed as problem:
        missing = problem.trouble is Trouble.NOT_FOUND
        code = FailureCode.DATA_NOT_FOUND if missing else FailureCode.DATA_UNREACHABLE
        raise failed(code, uri=uri, field=field, problem=problem) from problem
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise failed(FailureCode.DATA_NOT_FOUND, uri=uri, field=field) from error
    except OSError as error:
        raise failed(FailureCode.DATA_UNREACHABLE, uri=uri, problem=error.strerror) from error


def _fetch_from_hub(parts: UriParts, offline: bool) -> Path:
    kind = "dataset" if parts.root.startswith(DATASETS) else "model"
    repo = parts.root.removeprefix(DATASETS)
    return Path(hub.fetch_one(repo, kind, parts.path, parts.revision, offline=offline))


def fetch_model(
    uri: str,
    mounts: Mapping[str, str],
    offline: bool,
    revision: str | None = None,
    tokenizer_only: bool = False,
    code: bool = False,
) -> FetchedModel:
    """A model's folder: configuration, tokenizer and (unless `tokenizer_only`) weights, in safetensors alone.

    Args:
        revision: a commit known from before; it goes before the one that the URI names.
        code: the model's own code is wanted too.

    Raises:
        RunFailed: ModelNotFound, ModelUnsupported, ModelUnreachable.
    """
    parts = parse_uri(uri)
    try:
        if parts.scheme == "hf":
            return _model_from_hub(parts, revision or parts.revision, offline, tokenizer_only, code)
        path = locate_folder(uri, mounts)
        if not path.is_dir():
            raise failed(FailureCode.MODEL_NOT_FOUND, uri=uri)
        weight_files(path)
    except OutsideVolume as problem:
        raise failed(FailureCode.MODEL_UNSUPPORTED, uri=uri, problem=problem) from problem
    except HubFailed as problem:
        raise model_failure(uri, problem) from problem
    except FileNotFoundError as error:
        raise failed(FailureCode.MODEL_UNSUPPORTED, uri=uri, problem=NO_WEIGHTS) from error
    except ValueError as error:
        raise failed(FailureCode.MODEL_UNSUPPORTED, uri=uri, problem=error) from error
    return FetchedModel(path, None)


def fetch_checkpoint(uri: str, mounts: Mapping[str, str]) -> Path:
    """The folder of an earlier job's checkpoint; one in an object store is downloaded once.

    Raises:
        OutsideVolume, StoreFailed, OSError
    """
    if parse_uri(uri).scheme not in OBJECT_STORES:
        return locate_folder(uri, mounts)
    place = Path(tempfile.gettempdir()) / f"finetune-checkpoint-{hashlib.sha256(uri.encode()).hexdigest()}"
    if not place.is_dir():
        with tempfile.TemporaryDirectory(prefix="finetune-", ignore_cleanup_errors=True) as half:
            _download(uri, Path(half))
            with suppress(OSError):  # another process of this pod may have been quicker
                Path(half).rename(place)
    return place


def _download(uri: str, folder: Path) -> None:
    files = filesystem(uri)
    with asking():
        for name in names_below(files, uri):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            files.get_file(f"{uri}/{name}", str(folder / name))


def fetch_tokenizer(uri: str) -> tuple[Path, str | None]:
    """The folder that holds a model's tokenizer, and its commit on the Hub; weights are not asked for.

    Raises:
        RunFailed: ModelNotFound, ModelUnreachable.
    """
    try:
        parts = parse_uri(uri)
        if parts.scheme == "file" and Path(parts.path).is_dir():
            return Path(parts.path), None
        if parts.scheme != "hf" or "/" not in parts.root:
            raise failed(FailureCode.MODEL_NOT_FOUND, uri=uri)
        path = Path(hub.fetch_snapshot(parts.root, parts.revision, weights=False, offline=False))
        return path, path.name
    except HubFailed as problem:
        raise model_failure(uri, problem) from problem


def _model_from_hub(
    parts: UriParts, revision: str | None, offline: bool, tokenizer_only: bool, code: bool
) -> FetchedModel:
    if not offline and not hub.has_weights(parts.root, revision):
        raise HubFailed(Trouble.UNSUPPORTED, NO_WEIGHTS)
    path = Path(hub.fetch_snapshot(parts.root, revision, weights=not tokenizer_only, offline=offline, code=code))
    return FetchedModel(path, path.name)


def model_failure(uri: str, problem: HubFailed) -> RunFailed:
    """The cause for what the Hub did not give of the model `uri`."""
    code = {
        Trouble.NOT_FOUND: FailureCode.MODEL_NOT_FOUND,
        Trouble.UNSUPPORTED: FailureCode.MODEL_UNSUPPORTED,
        Trouble.UNREACHABLE: FailureCode.MODEL_UNREACHABLE,
    }[problem.trouble]
    return failed(code, uri=uri, problem=problem)
