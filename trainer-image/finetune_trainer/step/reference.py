"""The reference of DPO: the starting weights' log-probabilities of every answer, computed once before the first step.

No second model is held. The scores lie in shards in the job's private state; a restarted run loads what is there and
scores only what is missing, still with the starting weights, since a recovery state is restored afterwards.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from finetune_api.report import FailureCode
from finetune_trainer.failures import failed
from finetune_trainer.files import replace
from finetune_trainer.step.batch import PairTokens, pair_batch
from finetune_trainer.step.model import Policy
from finetune_trainer.step.packing import MicroBatchRows
from finetune_trainer.step.recipe import Level

SHARD_MICRO_BATCHES = 32
DIGEST_BYTES = 16


def reference_scores(
    policy: Policy,
    batches: Sequence[MicroBatchRows],
    pair: Callable[[int], PairTokens],
    level: Level,
    folder: Path,
    before_each: Callable[[], None],
) -> Tensor:
    """Sums of log-probabilities under the starting weights, fp64 [rows, 2], preferred first.

    Args:
        policy: holds the starting weights.
        batches: every row once; the same on every restart.
        pair: the tokens of a row.
        level: how rows lie in a pass.
        folder: where the shards lie.
        before_each: called before each micro-batch; what it raises ends the scoring between two shards.

    Raises:
        RunFailed: ConfigInvalid: a shard is about other tokens; ModelUnsupported: a score is not finite.
    """
    folder.mkdir(parents=True, exist_ok=True)
    policy.training(False)
    scores = torch.zeros(sum(map(len, batches)), 2, dtype=torch.float64)
    for number, first in enumerate(range(0, len(batches), SHARD_MICRO_BATCHES)):
        shard = batches[first : first + SHARD_MICRO_BATCHES]
        rows = [row for batch in shard for row in batch]
        path = folder / f"shard-{number:05d}.safetensors"
        digests = torch.from_numpy(np.stack([row_digest(pair(row)) for row in rows]))
        found = _load(path, rows, digests)
        if found is None:
            found = _score(policy, shard, pair, level, before_each)
            _save(path, rows, digests, found, [pair(row) for row in rows])
        scores[rows] = found
    return scores


def row_digest(pair: PairTokens) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    """16 bytes that stand for the tokens of a pair."""
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for part in (pair.prompt, pair.preferred, pair.non_preferred):
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(np.ascontiguousarray(part, dtype="<i4").tobytes())
    return np.frombuffer(digest.digest(), np.uint8).copy()


@torch.no_grad()
def _score(
    policy: Policy,
    batches: Sequence[MicroBatchRows],
    pair: Callable[[int], PairTokens],
    level: Level,
    before_each: Callable[[], None],
) -> Tensor:
    parts = []
    for rows in batches:
        before_each()
        sums = policy.score(pair_batch([pair(row) for row in rows], level)).cpu().view(-1, 2)
        for row, ok in zip(rows, sums.isfinite().all(dim=1).tolist(), strict=True):
            if not ok:
                problem = f"its log-probability of an answer of line {pair(row).line} is not finite"
                raise failed(FailureCode.MODEL_UNSUPPORTED, uri=policy.base.uri, problem=problem)
        parts.append(sums)
    return torch.cat(parts)


def _load(path: Path, rows: list[int], digests: Tensor) -> Tensor | None:
    """The sums of a shard; None where it is missing or damaged."""
    try:
        stored = load_file(path)
    except (FileNotFoundError, SafetensorError):
        return None
    if stored["rows"].tolist() != rows or not torch.equal(stored["digests"], digests):
        problem = f"the reference scores in {path.parent} are about other rows: remove that folder"
        raise failed(FailureCode.CONFIG_INVALID, field="reference", problem=problem)
    return stored["sums"]


def _save(path: Path, rows: list[int], digests: Tensor, sums: Tensor, pairs: Sequence[PairTokens]) -> None:
    counts = torch.tensor([[len(p.preferred), len(p.non_preferred)] for p in pairs], dtype=torch.int32)
    temporary = path.with_name(f".{path.name}.tmp")
    save_file({"rows": torch.tensor(rows), "digests": digests, "sums": sums.contiguous(), "counts": counts}, temporary)
    replace(temporary, path)
