"""The reference of DPO: the starting weights' log-probabilities of every answer, computed once before the first step.

No second model is held. The scores lie in shards in the job's private state; a restarted run loads what is there and
scores only what is missing, still with the starting weights, since a recovery state is restored afterwards.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from time import monotonic
from typing import TypeAlias

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from finetune_api.failures import FailureCode
from finetune_trainer.failures import failed
from finetune_trainer.files import replace
from finetune_trainer.step.batch import PairTokens
from finetune_trainer.step.ranks import ALONE, Ranks

SHARD_SECONDS = 20.0
"""A shard is written when this much work is in it: what a kill can cost."""
DIGEST_BYTES = 16

Tokens: TypeAlias = Callable[[int], PairTokens]


def reference_scores(
    pair: Tokens,
    groups: Sequence[Sequence[int]],
    score: Callable[[Sequence[int]], Tensor],
    folder: Path,
    told: Callable[[int, int], None],
    uri: str,
    file: str,
    ranks: Ranks = ALONE,
    kept: Callable[[Path], None] = lambda shard: None,
) -> Tensor:
    """Sums of log-probabilities under the starting weights, fp64 [rows, 2], preferred first.

    Args:
        pair: the tokens of a row.
        groups: every row once, in the order in which they are scored, those that may share a micro-batch together; the
            same on every restart, so that a restart changes no bit of what it has to score.
        score: the sums of some rows; what it raises ends the scoring, and what was scored is kept.
        folder: where the shards lie.
        told: hears how many rows of how many are done.
        uri: of the model, named where its scores are not finite.
        file: field of the job that names the file whose rows they are.
        ranks: the processes that score together; the first has the shards.
        kept: hears of each shard that has been written.

    Raises:
        RunFailed: ConfigInvalid: a shard is about other tokens; ModelUnsupported: a score is not finite.
    """
    count = sum(map(len, groups))
    sums, done = _load(folder, pair, count) if ranks.first else _nothing(count)
    sums, done = ranks.copied(sums), ranks.copied(done.byte()).bool()
    fresh: list[int] = []
    since = monotonic()
    try:
        for group in groups:
            if missing := [row for row in group if not done[row]]:
                told(int(done.sum()), len(done))
                sums[missing] = _finite(score(missing).cpu().view(-1, 2), missing, pair, uri, file)
                done[missing] = True
                fresh += missing
            if ranks.first and fresh and monotonic() - since >= SHARD_SECONDS:
                kept(_save(folder, fresh, sums, pair))
                fresh, since = [], monotonic()
    finally:
        if ranks.first and fresh:
            kept(_save(folder, fresh, sums, pair))
    return sums


def row_digest(pair: PairTokens) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    """16 bytes that stand for the tokens of a pair."""
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for part in (pair.prompt, pair.preferred, pair.non_preferred):
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(np.ascontiguousarray(part, dtype="<i4").tobytes())
    return np.frombuffer(digest.digest(), np.uint8).copy()


def _finite(sums: Tensor, rows: Sequence[int], pair: Tokens, uri: str, file: str) -> Tensor:
    for row, finite in zip(rows, sums.isfinite().all(dim=1).tolist(), strict=True):
        if not finite:
            problem = f"its log-probability of an answer of line {pair(row).line} of {file} is not finite"
            raise failed(FailureCode.MODEL_UNSUPPORTED, uri=uri, problem=problem)
    return sums


def _nothing(count: int) -> tuple[Tensor, Tensor]:
    return torch.zeros(count, 2, dtype=torch.float64), torch.zeros(count, dtype=torch.bool)


def _load(folder: Path, pair: Tokens, count: int) -> tuple[Tensor, Tensor]:
    """What the shards hold: sums, fp64 [rows, 2], and which rows have them. A damaged shard is removed."""
    folder.mkdir(parents=True, exist_ok=True)
    sums, done = _nothing(count)
    for path in sorted(folder.glob("shard-*.safetensors")):
        try:
            stored = load_file(path)
        except SafetensorError:
            path.unlink()
            continue
        rows = stored["rows"]
        if rows.max() >= count or not torch.equal(stored["digests"], _digests(rows.tolist(), pair)):
            problem = f"the reference scores in {folder} are about other rows: remove that folder"
            raise failed(FailureCode.CONFIG_INVALID, field="reference", problem=problem)
        sums[rows], done[rows] = stored["sums"], True
    return sums, done


def _save(folder: Path, rows: Sequence[int], sums: Tensor, pair: Tokens) -> Path:
    """Write a shard under the next free number and return its path."""
    numbers = [int(path.stem.removeprefix("shard-")) for path in folder.glob("shard-*.safetensors")]
    path = folder / f"shard-{max(numbers, default=-1) + 1:06d}.safetensors"
    counts = [[len(pair(row).preferred), len(pair(row).non_preferred)] for row in rows]
    tensors = {
        "rows": torch.tensor(rows),
        "digests": _digests(rows, pair),
        "sums": sums[list(rows)],
        "counts": torch.tensor(counts, dtype=torch.int32),
    }
    temporary = path.with_name(f".{path.name}.tmp")
    save_file(tensors, temporary)
    replace(temporary, path)
    return path


def _digests(rows: Sequence[int], pair: Tokens) -> Tensor:
    return torch.from_numpy(np.stack([row_digest(pair(row)) for row in rows]))
