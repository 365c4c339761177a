"""From the URIs of a configuration to files on this machine: volumes, the Hub, object stores, and https.

Every way to fail becomes one of a few named causes: the model or the data is not there or may not be read (the user's
to mend), or it could not be reached (tried again by a new pod).
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from finetune_api.failures import FailureCode
from finetune_api.uris import OBJECT_STORES, UriParts, parse_uri
from finetune_trainer import trouble
from finetune_trainer.data import hub, stores
from finetune_trainer.data.https import NOWHERE, NotAllowed, Web
from finetune_trainer.data.hub import HubFailed, Trouble
from finetune_trainer.download import Told, download, fetch_folder, fetch_object, untold
from finetune_trainer.failures import RunFailed, failed
from finetune_trainer.files import weight_files
from finetune_trainer.trouble import StoreFailed
from finetune_trainer.volumes import OutsideVolume, locate, locate_folder

DATASETS = "datasets/"
NO_WEIGHTS = "it has no weights in safetensors format"


@dataclass(frozen=True, slots=True)
class FetchedModel:
    """A model's folder on this machine."""

    path: Path
    revision: str | None
    """Commit on the Hub, or digest of what an object store lists of it; None for a folder of a volume."""


@dataclass(frozen=True, slots=True)
class FetchedFile:
    """A data file on this machine."""

    path: Path
    revision: str | None = None
    """Commit on the Hub."""


def fetch_file(
    uri: str,
    mounts: Mapping[str, str],
    offline: bool,
    field: str = "trainingFile",
    *,
    web: Web = NOWHERE,
    scratch: Path | None = None,
    told: Told = untold,
) -> FetchedFile:
    """A data file, downloaded unless it lies on a volume; `field` names it in the error.

    Args:
        web: from where it may come by https.
        scratch: where a download goes; None = this machine's temporary folder.
        told: hears how far a download is; the Hub's own client tells nothing.

    Raises:
        RunFailed: DataNotFound, DataRefused, DataUnreachable, StorageFull.
    """
    with _told_of_data(uri, field):
        parts = parse_uri(uri)
        if parts.scheme == "hf":
            found = _file_from_hub(parts, offline)
        elif parts.scheme == "https" or parts.scheme in OBJECT_STORES:
            found = _download(uri, web, Path(tempfile.mkdtemp(dir=scratch)), told)
        else:
            found = FetchedFile(locate(uri, mounts))
        with found.path.open("rb"):
            return found


def _download(uri: str, web: Web, folder: Path, told: Told) -> FetchedFile:
    """Under its own name, which says what it is where its bytes do not."""
    path = folder / uri.rsplit("/", 1)[-1]
    if uri.startswith("https://"):
        download(partial(web.open, uri), path, told)
    else:
        fetch_object(uri, path, told)
    return FetchedFile(path)


def _file_from_hub(parts: UriParts, offline: bool) -> FetchedFile:
    kind = "dataset" if parts.root.startswith(DATASETS) else "model"
    repo = parts.root.removeprefix(DATASETS)
    return FetchedFile(*hub.fetch_one(repo, kind, parts.path, parts.revision, offline=offline))


@contextmanager
def _told_of_data(uri: str, field: str) -> Iterator[None]:
    """What is raised on the way to a data file, as a cause."""
    try:
        yield
    except NotAllowed as problem:
        raise failed(FailureCode.DATA_REFUSED, uri=uri, field=field, problem=problem) from problem
    except OutsideVolume as problem:
        raise failed(FailureCode.DATA_UNREACHABLE, uri=uri, problem=problem) from problem
    except (HubFailed, StoreFailed) as problem:
        passing = (Trouble.UNREACHABLE, trouble.Trouble.UNREACHABLE, trouble.Trouble.CHANGED)
        code = FailureCode.DATA_UNREACHABLE if problem.trouble in passing else FailureCode.DATA_NOT_FOUND
        raise failed(code, uri=uri, field=field, problem=problem) from problem
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise failed(FailureCode.DATA_NOT_FOUND, uri=uri, field=field) from error
    except OSError as error:
        raise failed(FailureCode.DATA_UNREACHABLE, uri=uri, problem=error.strerror) from error


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
        revision: known from before; it goes before the one that the URI names.
        code: the model's own code is wanted too.

    Raises:
        RunFailed: ModelNotFound, ModelUnsupported, ModelUnreachable, StorageFull.
    """
    parts = parse_uri(uri)
    with _told_of_model(uri):
        if parts.scheme == "hf":
            return _model_from_hub(parts, revision or parts.revision, offline, tokenizer_only, code)
        if parts.scheme in OBJECT_STORES:
            return FetchedModel(*stores.fetch_snapshot(uri, revision, weights=not tokenizer_only, code=code))
        path = locate_folder(uri, mounts)
        if not path.is_dir():
            raise failed(FailureCode.MODEL_NOT_FOUND, uri=uri)
        weight_files(path)
        return FetchedModel(path, None)


@contextmanager
def _told_of_model(uri: str) -> Iterator[None]:
    """What is raised on the way to a model, as a cause."""
    try:
        yield
    except OutsideVolume as problem:
        raise failed(FailureCode.MODEL_UNSUPPORTED, uri=uri, problem=problem) from problem
    except (HubFailed, StoreFailed) as problem:
        raise model_failure(uri, problem) from problem
    except FileNotFoundError as error:
        raise failed(FailureCode.MODEL_UNSUPPORTED, uri=uri, problem=NO_WEIGHTS) from error
    except ValueError as error:
        raise failed(FailureCode.MODEL_UNSUPPORTED, uri=uri, problem=error) from error


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
            fetch_folder(uri, Path(half))
            with suppress(OSError):  # another process of this pod may have been quicker
                Path(half).rename(place)
    return place


def fetch_tokenizer(uri: str) -> tuple[Path, str | None]:
    """The folder that holds a model's tokenizer, and its commit on the Hub; weights are not asked for.

    Raises:
        RunFailed: ModelNotFound, ModelUnreachable.
    """
    parts = parse_uri(uri)
    with _told_of_model(uri):
        if parts.scheme == "file" and Path(parts.path).is_dir():
            return Path(parts.path), None
        if parts.scheme in OBJECT_STORES:
            return stores.fetch_snapshot(uri, None, weights=False)
        if parts.scheme != "hf" or "/" not in parts.root:
            raise failed(FailureCode.MODEL_NOT_FOUND, uri=uri)
        path = Path(hub.fetch_snapshot(parts.root, parts.revision, weights=False, offline=False))
        return path, path.name


def _model_from_hub(
    parts: UriParts, revision: str | None, offline: bool, tokenizer_only: bool, code: bool
) -> FetchedModel:
    if not offline and not hub.has_weights(parts.root, revision):
        raise HubFailed(Trouble.UNSUPPORTED, NO_WEIGHTS)
    path = Path(hub.fetch_snapshot(parts.root, revision, weights=not tokenizer_only, offline=offline, code=code))
    return FetchedModel(path, path.name)


def model_failure(uri: str, problem: HubFailed | StoreFailed) -> RunFailed:
    """The cause for what the Hub or a store did not give of the model `uri`."""
    code = {
        Trouble.NOT_FOUND: FailureCode.MODEL_NOT_FOUND,
        Trouble.UNSUPPORTED: FailureCode.MODEL_UNSUPPORTED,
        Trouble.UNREACHABLE: FailureCode.MODEL_UNREACHABLE,
        trouble.Trouble.NOT_FOUND: FailureCode.MODEL_NOT_FOUND,
        trouble.Trouble.REFUSED: FailureCode.MODEL_NOT_FOUND,
        trouble.Trouble.CHANGED: FailureCode.MODEL_UNREACHABLE,
        trouble.Trouble.UNREACHABLE: FailureCode.MODEL_UNREACHABLE,
    }[problem.trouble]
    return failed(code, uri=uri, problem=problem)
