"""How a step is computed on this machine: decided once, stored with the recovery state, the same after a restart.

None of it changes loss or gradients beyond rounding; all of it changes speed and memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


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
    """The two sequences of a pair go through the model one after the other, which halves memory and costs a pass."""
