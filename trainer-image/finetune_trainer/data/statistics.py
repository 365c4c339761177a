"""What a person wants to know of the data before training: lengths per side, and what is odd about the rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from math import ceil

from finetune_api.findings import DataWarningCode as Code
from finetune_api.status import TokenStatistics
from finetune_trainer.data.tokens import Conversation, Pair

ODDITIES: dict[Code, str] = {
    Code.TOO_LONG: "{count} of {rows} rows of {name} are longer than maxSeqLength {limit} and are left out",
    Code.PROMPT_TOO_LONG: "of {count} rows of {name} the prompt alone fills maxSeqLength {limit}: they are left out",
    Code.TRUNCATED: "{count} of {rows} rows of {name} are longer than maxSeqLength {limit} and are cut",
    Code.DUPLICATE_ROW: "{count} rows of {name} repeat an earlier row",
    Code.IN_TRAINING_FILE: "{count} rows of {name} are also in trainingFile: evaluation will look better than it is",
    Code.PROMPT_IN_TRAINING_FILE: "{count} more rows of {name} have a prompt of trainingFile",
    Code.NOTHING_TO_TRAIN: "{count} rows of {name} have weight 0 or no token to train on and are left out",
    Code.LAST_TURN_ONLY: "of {count} conversations of {name} only the last answer is trained: the chat template renders"
    " earlier answers differently once the conversation goes on",
    Code.CONTROL_TOKEN: "{count} rows of {name} hold the tokenizer's begin or end token in their text",
}
"""Sentences for a whole file, in the order in which they are told."""


class Lengths:
    """How many rows have each length, side by side: exact, and small, as lengths are bounded."""

    def __init__(self) -> None:
        self.sides: dict[str, Counter[int]] = {}
        self.tokens = 0
        self.longest = 0
        self.images = 0

    def add(self, row: Pair | Conversation) -> None:
        """Count a row that is trained on."""
        if isinstance(row, Pair):
            sides = {"prompt": row.prompt.size, "preferred": row.preferred.size, "nonPreferred": row.non_preferred.size}
            longest = row.prompt.size + max(row.preferred.size, row.non_preferred.size)
        else:
            sides, longest = {"sequence": row.tokens.size}, row.tokens.size
        for side, size in sides.items():
            self.sides.setdefault(side, Counter())[size] += 1
            self.tokens += size
        self.longest = max(self.longest, longest)
        self.images += len(row.images)

    def statistics(self) -> dict[str, TokenStatistics]:
        """Median, 95th percentile and maximum length of each side, in tokens."""
        return {side: _statistics(counts) for side, counts in self.sides.items()}


def _statistics(counts: Counter[int]) -> TokenStatistics:
    return TokenStatistics(p50=_percentile(counts, 50), p95=_percentile(counts, 95), max=max(counts))


def _percentile(counts: Counter[int], percent: int) -> int:
    """The smallest length that at least `percent` of the rows do not exceed."""
    needed = ceil(counts.total() * percent / 100)
    for length in sorted(counts):
        needed -= counts[length]
        if needed <= 0:
            return length
    return max(counts)


def oddities(name: str, rows: int, limit: int, warned: Mapping[Code, int]) -> Iterator[str]:
    """Sentences on what is odd about the file `name` but no error."""
    for code, sentence in ODDITIES.items():
        if warned.get(code):
            yield sentence.format(count=warned[code], rows=rows, name=name, limit=limit)
