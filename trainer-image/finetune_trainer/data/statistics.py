"""What a person wants to know of the data before training: lengths per side, and what is odd about the rows."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from finetune_api.status import TokenStatistics
from finetune_trainer.data.check import FileCheck
from finetune_trainer.data.tokens import CacheKind, TokenCache

SIDES = {CacheKind.PREFERENCE: ("prompt", "preferred", "nonPreferred"), CacheKind.CONVERSATION: ("sequence",)}


def token_statistics(cache: TokenCache) -> dict[str, TokenStatistics]:
    """Median, 95th percentile and maximum length of each side, in tokens."""
    sides = SIDES[cache.kind]
    lengths = np.diff(cache.offsets).reshape(len(cache), len(sides))
    return {side: _statistics(lengths[:, column]) for column, side in enumerate(sides)}


def _statistics(lengths: np.ndarray[tuple[int], np.dtype[np.int64]]) -> TokenStatistics:
    median, high = np.percentile(lengths, [50, 95], method="inverted_cdf")
    return TokenStatistics(p50=int(median), p95=int(high), max=int(lengths.max()))


def oddities(check: FileCheck) -> Iterator[str]:
    """Sentences on what is odd but no error."""
    found, name = check.tally, check.name
    if found.dropped:
        limit = check.rules.max_seq_length
        yield f"{found.dropped} of {found.rows} rows of {name} are longer than maxSeqLength {limit} and are left out"
    if found.duplicates:
        yield f"{found.duplicates} rows of {name} repeat an earlier row"
    if found.shared_rows:
        yield f"{found.shared_rows} rows of {name} are also in trainingFile: evaluation will look better than it is"
    if found.shared_prompts:
        yield f"{found.shared_prompts} more rows of {name} have a prompt of trainingFile"
    if found.last_turn_only:
        yield (
            f"of {found.last_turn_only} conversations of {name} only the last answer is trained: the chat template"
            " renders earlier answers differently once the conversation goes on"
        )
