"""A micro-batch: tokens as the model takes them, and which hidden states predict which targets.

Everything after the model works on (hidden state, target, sequence) triples, so this layout, one padded line per
sequence with the model's stock attention, can be replaced without touching log-probabilities or losses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Integers = npt.NDArray[np.integer[Any]]


class PairTokens(Protocol):
    """A preference row: a prompt and two answers, from a line of the data file."""

    @property
    def line(self) -> int: ...
    @property
    def prompt(self) -> Integers: ...
    @property
    def preferred(self) -> Integers: ...
    @property
    def non_preferred(self) -> Integers: ...


class ConversationTokens(Protocol):
    """A conversation row: tokens, and which of them are trained on."""

    @property
    def tokens(self) -> Integers: ...
    @property
    def targets(self) -> npt.NDArray[np.bool_]: ...


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """One forward pass. Sequences are numbered row by row; of a pair the preferred answer comes first."""

    input_ids: Tensor
    """int64 [lines, width], padded on the right with 0."""
    attention_mask: Tensor
    """int64 [lines, width], 1 on tokens."""
    predictors: Tensor
    """Flat position (line * width + column) of the state that predicts each target, int64 [targets]."""
    targets: Tensor
    """Token ids, int64 [targets]."""
    sequence: Tensor
    """Sequence of each target, int64 [targets]."""
    sequences: int
    tokens: int
    """Tokens in the padded rectangle: what the pass costs."""

    def to(self, device: torch.device) -> MicroBatch:
        """The same on another device."""
        if device.type == "cpu":
            return self
        return replace(
            self,
            input_ids=self.input_ids.to(device),
            attention_mask=self.attention_mask.to(device),
            predictors=self.predictors.to(device),
            targets=self.targets.to(device),
            sequence=self.sequence.to(device),
        )


def pair_batch(rows: Sequence[PairTokens]) -> MicroBatch:
    """Two lines per pair, [prompt | preferred] and [prompt | non-preferred]; every answer token is a target.

    The first token of an answer is predicted from the prompt's last position, so a prompt is never empty.
    """
    lines, masks = [], []
    for row in rows:
        for answer in (row.preferred, row.non_preferred):
            lines.append(np.concatenate([row.prompt, answer]))
            masks.append(np.arange(len(row.prompt) + len(answer)) >= len(row.prompt))
    return _padded(lines, masks)


def conversation_batch(rows: Sequence[ConversationTokens]) -> MicroBatch:
    """One line per conversation; `targets[0]` of a row is False, since nothing comes before it."""
    return _padded([row.tokens for row in rows], [row.targets for row in rows])


def _padded(lines: Sequence[Integers], masks: Sequence[npt.NDArray[np.bool_]]) -> MicroBatch:
    width = max(len(line) for line in lines)
    input_ids = np.zeros((len(lines), width), np.int64)
    attention_mask = np.zeros((len(lines), width), np.int64)
    target_mask = np.zeros((len(lines), width), np.bool_)
    for i, (line, mask) in enumerate(zip(lines, masks, strict=True)):
        input_ids[i, : len(line)] = line
        attention_mask[i, : len(line)] = 1
        target_mask[i, : len(line)] = mask
    where, column = np.nonzero(target_mask)
    return MicroBatch(
        input_ids=torch.from_numpy(input_ids),
        attention_mask=torch.from_numpy(attention_mask),
        predictors=torch.from_numpy(where * width + column - 1),
        targets=torch.from_numpy(input_ids[target_mask]),
        sequence=torch.from_numpy(where),
        sequences=len(lines),
        tokens=input_ids.size,
    )
