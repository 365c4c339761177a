"""What has to fit into memory at once: a micro-batch as the trainer would make it, in numbers of tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from finetune_trainer.data.tokens import CacheKind, TokenCache

Integers: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Load:
    """Tokens of a forward pass."""

    tokens: int
    targets: int
    """Tokens whose log-probability is wanted."""
    repeated: int = 0
    """Keys that attention copies, because an answer sees its prompt elsewhere."""
    hidden_from: int = 0
    """Entries of the masks that say which of those keys a token sees, where there is no kernel that needs none."""

    def __mul__(self, factor: float) -> Load:
        """One of more tokens, or of fewer, otherwise alike."""
        return Load(*(round(factor * n) for n in (self.tokens, self.targets, self.repeated, self.hidden_from)))


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of a file, by their lengths in tokens, each int64 [rows]."""

    prompts: Integers
    """0 where a row has one sequence."""
    firsts: Integers
    """The preferred answer; the whole of a conversation."""
    seconds: Integers
    """The other answer; 0 where a row has one sequence."""
    targets: Integers
    """Of both answers."""
    lines: Integers
    """Line in the data file."""

    @classmethod
    def of(cls, cache: TokenCache) -> Rows:
        """Those of a token cache."""
        if cache.kind is CacheKind.PREFERENCE:
            prompts, firsts, seconds = np.diff(cache.offsets).reshape(-1, 3).T
            return cls(prompts, firsts, seconds, firsts + seconds, cache.lines)
        assert cache.targets is not None
        none = np.zeros(len(cache), np.int64)
        targets = np.add.reduceat(cache.targets, cache.offsets[:-1], dtype=np.int64)
        return cls(none, cache.lengths, none, targets, cache.lines)

    @property
    def tokens(self) -> int:
        """Of all rows, a prompt counted once."""
        return int(self.prompts.sum() + self.firsts.sum() + self.seconds.sum())

    @property
    def meetings(self) -> int:
        """Queries times the keys that they may see, over all rows; the second answer sees the prompt before itself."""
        first, second = self.prompts + self.firsts, self.seconds
        return int((first * first + second * np.where(second > 0, self.prompts + second, 0)).sum())

    @property
    def longest(self) -> int:
        """The row with the longest sequence."""
        return int(np.argmax(self.prompts + np.maximum(self.firsts, self.seconds)))

    def alone(self, row: int) -> Load:
        """The longer sequence of a row in a pass of its own."""
        pair = bool(self.seconds[row])
        answer = int(max(self.firsts[row], self.seconds[row]))
        return Load(int(self.prompts[row]) + answer, answer if pair else int(self.targets[row]))

    def packed(self, most_tokens: int, most_rows: int) -> Load:
        """The widest rows for which a micro-batch has room, with what shared prompts take; the widest one at least."""
        widths = self.prompts + self.firsts + self.seconds
        widest = np.argsort(-widths, kind="stable")[:most_rows]
        count = max(1, int(np.searchsorted(np.cumsum(widths[widest]), most_tokens, side="right")))
        rows = widest[:count]
        seen = np.where(self.seconds[rows] > 0, self.prompts[rows] + self.seconds[rows], 0)
        whole = Load(
            int(widths[rows].sum()),
            int(self.targets[rows].sum()),
            int(seen.sum()),
            int((seen * self.seconds[rows]).sum()),
        )
        room = min(most_tokens, int(widths[widest].sum()))
        return whole * max(1.0, room / whole.tokens)
