"""A micro-batch: tokens as the model takes them, who sees whom, and which hidden states predict which targets.

Everything after the model works on (hidden state, target, sequence) triples, so the three levels differ here and in
the attention alone. No layout has padding, and the batch dimension is always 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from finetune_trainer.step.attention import Layout, Segment
from finetune_trainer.step.pixels import Pixels
from finetune_trainer.step.recipe import Level

Integers = npt.NDArray[np.integer[Any]]
Booleans = npt.NDArray[np.bool_]


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
    def line(self) -> int: ...
    @property
    def tokens(self) -> Integers: ...
    @property
    def targets(self) -> Booleans: ...


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """The same on `device`; to a GPU it is copied while the program goes on."""
    if device.type != "cuda":
        return tensor.to(device)
    return (tensor if tensor.is_pinned() else tensor.pin_memory()).to(device, non_blocking=True)


@dataclass(frozen=True, slots=True)
class Pass:
    """One forward pass. `sequence` counts over the whole micro-batch."""

    input_ids: Tensor
    """int64 [1, tokens]."""
    position_ids: Tensor
    """int64 [1, tokens]: the place of each token in its sequence."""
    layout: Layout | None
    """Who sees whom; None: one sequence, which the model's stock attention handles alone."""
    predictors: Tensor
    """Position of the state that predicts each target, int64 [targets]."""
    targets: Tensor
    """Token ids, int64 [targets]."""
    sequence: Tensor
    """Sequence of each target, int64 [targets]."""
    pixels: Pixels | None = None
    """The images of the sequence, where it is alone and has any."""

    @property
    def tokens(self) -> int:
        """What the pass costs."""
        return self.input_ids.shape[1]

    def to(self, device: torch.device) -> Pass:
        """The same on another device."""
        if device.type == "cpu":
            return self
        return Pass(
            input_ids=sent(self.input_ids, device),
            position_ids=sent(self.position_ids, device),
            layout=self.layout and self.layout.to(device),
            predictors=sent(self.predictors, device),
            targets=sent(self.targets, device),
            sequence=sent(self.sequence, device),
            pixels=self.pixels and self.pixels.each(lambda tensor: sent(tensor, device)),
        )

    def pinned(self) -> Pass:
        """The same in memory from which a GPU copies while the program goes on."""
        return Pass(
            input_ids=self.input_ids.pin_memory(),
            position_ids=self.position_ids.pin_memory(),
            layout=self.layout and self.layout.pinned(),
            predictors=self.predictors.pin_memory(),
            targets=self.targets.pin_memory(),
            sequence=self.sequence.pin_memory(),
            pixels=self.pixels and self.pixels.each(Tensor.pin_memory),
        )


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Rows that are scored together. Sequences are numbered row by row; of a pair the preferred answer comes first."""

    passes: tuple[Pass, ...]
    sequences: int
    lines: tuple[int, ...]
    """Line of each row in the data file, named in errors."""

    @property
    def tokens(self) -> int:
        """Tokens of its largest pass: what has to fit into memory at once."""
        return max(one.tokens for one in self.passes)

    def to(self, device: torch.device) -> MicroBatch:
        """The same on another device."""
        return self if device.type == "cpu" else replace(self, passes=tuple(one.to(device) for one in self.passes))

    def pinned(self) -> MicroBatch:
        """The same in memory from which a GPU copies while the program goes on."""
        return replace(self, passes=tuple(one.pinned() for one in self.passes))

    def padded(self, passes: int, level: Level) -> MicroBatch:
        """The same with so many passes, those that are added being as short as can be and having no targets."""
        idle = _Piece(np.zeros(1, np.int64), np.zeros(1, np.bool_))
        added = [_level_pass([idle], 0, level) for _ in range(passes - len(self.passes))]
        return replace(self, passes=(*self.passes, *added))


NOTHING = MicroBatch((), 0, ())


class _Piece(NamedTuple):
    """A sequence, or what it adds to the first `prefix` tokens of the piece before it."""

    tokens: Integers
    targets: Booleans
    """Which of `tokens` are trained on."""
    prefix: int = 0
    pixels: Pixels | None = None


def pair_batch(rows: Sequence[PairTokens], level: Level, pixels: Sequence[Pixels | None] | None = None) -> MicroBatch:
    """Two sequences per pair, [prompt | preferred] and [prompt | non-preferred]; every answer token is a target.

    The first token of both answers is predicted from the prompt's last position, so a prompt is never empty.

    Args:
        pixels: the images of each row; only where every sequence is alone in its pass.
    """
    pieces = []
    for row, seen in zip(rows, pixels or [None] * len(rows), strict=True):
        pieces.append(_answer(row.prompt, row.preferred, seen))
        if level is Level.SHARED:
            pieces.append(_Piece(row.non_preferred, np.ones(len(row.non_preferred), np.bool_), len(row.prompt)))
        else:
            pieces.append(_answer(row.prompt, row.non_preferred, seen))
    return _micro_batch(pieces, level, rows)


def conversation_batch(
    rows: Sequence[ConversationTokens], level: Level, pixels: Sequence[Pixels | None] | None = None
) -> MicroBatch:
    """One sequence per conversation; `targets[0]` of a row is False, since nothing comes before it.

    Args:
        pixels: as `pair_batch` takes them.
    """
    seen = zip(rows, pixels or [None] * len(rows), strict=True)
    return _micro_batch([_Piece(row.tokens, row.targets, pixels=its) for row, its in seen], level, rows)


def _answer(prompt: Integers, answer: Integers, pixels: Pixels | None) -> _Piece:
    tokens = np.concatenate([prompt, answer])
    return _Piece(tokens, np.arange(len(tokens)) >= len(prompt), pixels=pixels)


def _micro_batch(
    pieces: Sequence[_Piece], level: Level, rows: Sequence[PairTokens] | Sequence[ConversationTokens]
) -> MicroBatch:
    alone = level is Level.SINGLE
    parts = [(number, [piece]) for number, piece in enumerate(pieces)] if alone else [(0, pieces)]
    passes = [_level_pass(part, first, level) for first, part in parts]
    return MicroBatch(tuple(passes), len(pieces), tuple(row.line for row in rows))


def _level_pass(pieces: Sequence[_Piece], first_sequence: int, level: Level) -> Pass:
    found = _pass(pieces, first_sequence)
    if level is Level.SINGLE:
        return replace(found, layout=None, pixels=pieces[0].pixels)
    assert all(piece.pixels is None for piece in pieces), "a sequence with images has a pass to itself"
    return found


def _pass(pieces: Sequence[_Piece], first_sequence: int) -> Pass:
    """`pieces` end to end, numbered from `first_sequence`."""
    segments, positions, predictors, sequence = [], [], [], []
    start = before = 0
    for number, piece in enumerate(pieces, first_sequence):
        length = len(piece.tokens)
        segments.append(Segment(before if piece.prefix else start, piece.prefix, start, length))
        positions.append(np.arange(piece.prefix, piece.prefix + length))
        places = start + np.flatnonzero(piece.targets) - 1
        if piece.prefix:
            places[places < start] = before + piece.prefix - 1
        predictors.append(places)
        sequence.append(np.full(len(places), number))
        before, start = start, start + length
    tokens = np.concatenate([piece.tokens for piece in pieces]).astype(np.int64)
    return Pass(
        input_ids=torch.from_numpy(tokens)[None],
        position_ids=torch.from_numpy(np.concatenate(positions))[None],
        layout=Layout.of(segments),
        predictors=torch.from_numpy(np.concatenate(predictors)),
        targets=torch.from_numpy(tokens[np.concatenate([piece.targets for piece in pieces])]),
        sequence=torch.from_numpy(np.concatenate(sequence)),
    )
