"""How a step is computed on this machine: decided once, stored with the recovery state, the same after a restart.

None of it changes loss or gradients beyond rounding; all of it changes speed and memory.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

ROW_ALONE = 1
"""`max_tokens` by which every row has a micro-batch to itself."""
CPU_TOKENS = 4096
"""Most tokens of a micro-batch on a CPU, whose free memory cannot be known."""
LOGITS_BYTES = 512 * 1024**2
"""Most bytes of logits that exist at once, temporaries included."""
OPTIMIZER_STATES = 2
"""Tensors that AdamW keeps for each parameter, of its size, from its first step on."""
FROZEN_SHARE = 0.6
"""Most of a GPU's memory that weights may take that are not trained, before several processes spread them: the rest is
for what is computed with them."""
SHORTEST = 2
"""Tokens of the shortest row: one to predict from, one to predict."""


class Level(StrEnum):
    """How rows lie in a forward pass, from the fastest to the one that every model can do."""

    SHARED = "Shared"
    """A pair is one sequence, [prompt | preferred | non-preferred], the prompt computed once; many pairs to a pass."""
    PACKED = "Packed"
    """Each answer follows its own copy of the prompt; many rows to a pass, no padding."""
    SINGLE = "Single"
    """One sequence to a pass, with the model's stock attention."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """What was decided at start-up."""

    level: Level
    max_tokens: int
    """Most tokens of a micro-batch; a longer row has one to itself."""
    checkpointing: bool = False
    """Activations are computed again in the backward pass."""
    split: bool = False
    """Pairs longer than `max_tokens` go through the model one sequence after the other: half the memory, one more
    forward pass."""

    def easier(self, rows: int, tokens: int, *, pairs: bool, gradient: bool) -> Recipe | None:
        """The recipe that needs less memory, after a micro-batch of `rows` rows did not fit; None: there is none.

        Smaller micro-batches cost next to nothing, computing activations again a third of a step, a split pair one
        more forward pass.

        Args:
            tokens: of that micro-batch.
            pairs: rows have two sequences.
            gradient: the pass was to be followed by a backward pass; without one no activations are kept.
        """
        if rows > 1:
            return replace(self, max_tokens=max(ROW_ALONE, min(tokens, self.max_tokens) // 2))
        if gradient and not self.checkpointing:
            return replace(self, checkpointing=True)
        if pairs and not self.splits(tokens):
            return replace(self, split=True, max_tokens=min(self.max_tokens, tokens - 1))
        return None

    def splits(self, tokens: int) -> bool:
        """Whether a micro-batch of so many tokens, which is one row, is split."""
        return self.split and tokens > self.max_tokens

    def __str__(self) -> str:
        size = "one row each" if self.max_tokens == ROW_ALONE else f"at most {self.max_tokens} tokens"
        more = [" with activations computed again"] * self.checkpointing + [", long pairs split"] * self.split
        return f"micro-batches of {size}{''.join(more)}"
