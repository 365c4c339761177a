"""What prepare hands to training: prepared.json, written last, beside the token caches that it vouches for."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, ValidationError

from finetune_api.base import ApiModel, Integer
from finetune_api.status import DataStatus, JobWarning, Resolved
from finetune_trainer.data.tokens import CacheKind
from finetune_trainer.files import sha256_of

PREPARED_FILE = "prepared.json"
TRAIN_FOLDER, VALIDATION_FOLDER = "train", "validation"


class Prepared(ApiModel):
    """A finished prepare step. Its caches are `train/` and, with a validation file, `validation/` beside it."""

    key: str
    """Digest of everything that decides the tokens: data, tokenizer and template, method, length."""
    model_revision: str | None = None
    """Commit of the model on the Hub; training fetches just this one."""
    kind: CacheKind
    """What a row of the caches is."""
    rows: Integer
    """Rows of the training cache, at least 1."""
    validation_rows: Integer = 0
    """Rows of the validation cache; 0 = there is none."""
    max_seq_length: Integer
    """Longest sequence in tokens, as resolved."""
    batch_size: Integer
    """Pairs or rows per optimiser step."""
    total_steps: Integer
    """n_epochs * ceil(rows / batch_size)."""
    data: DataStatus
    """What was found in the data."""
    warnings: tuple[JobWarning, ...] = ()
    """What of the data changes how the job trains."""
    resolved: Resolved
    """What absent values became."""
    digests: dict[str, str] = Field(default_factory=dict)
    """SHA-256 of every cache file, by its path below the folder."""


def load_prepared(folder: Path) -> Prepared | None:
    """The finished step in `folder`, or None where there is none: no file, or one that does not parse."""
    try:
        return Prepared.model_validate_json((folder / PREPARED_FILE).read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def cache_digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of the token caches in `folder`, by relative path."""
    return {
        path.relative_to(folder).as_posix(): sha256_of(path)
        for name in (TRAIN_FOLDER, VALIDATION_FOLDER)
        for path in sorted((folder / name).rglob("*"))
        if path.is_file()
    }
