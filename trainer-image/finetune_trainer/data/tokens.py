"""The token cache: what prepare writes once and training reads through memory maps, row by row.

A cache is a folder of plain `.npy` files, nothing pickled: `tokens` holds all rows end to end, `offsets` where each
part of a row begins, `lines` the line of the data file that a row came from, `weights` the factor of its loss. Writing
and reading need memory for one row only.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

IntArray: TypeAlias = npt.NDArray[np.int32]
BoolArray: TypeAlias = npt.NDArray[np.bool_]

KIND_FILE = "cache.json"


class CacheKind(StrEnum):
    """What a row of a cache is."""

    PREFERENCE = "preference"
    CONVERSATION = "conversation"


@dataclass(frozen=True, slots=True)
class Pair:
    """A preference row, token ids: [prompt | preferred] and [prompt | non_preferred] are the two sequences.

    BOS stands in the prompt, which is never empty; each answer ends with its end-of-turn token.
    """

    line: int
    """Line in the data file, from 1."""
    prompt: IntArray
    preferred: IntArray
    non_preferred: IntArray
    weight: float = 1.0
    """Factor of the row's loss, > 0."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """A conversation row, token ids: `targets[i]` says that token i is trained on (predicted from i - 1)."""

    line: int
    """Line in the data file, from 1."""
    tokens: IntArray
    targets: BoolArray
    """As long as `tokens`; `targets[0]` is always False."""
    weight: float = 1.0
    """Factor of the row's loss, > 0."""


@dataclass(frozen=True, slots=True)
class TokenCache:
    """A cache as it lies on disk: `cache[i]` is row i, its arrays are read-only views of the memory map."""

    kind: CacheKind
    tokens: IntArray
    offsets: npt.NDArray[np.int64]
    lines: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float64]
    """Factor of each row's loss, [rows]."""
    targets: BoolArray | None

    def __len__(self) -> int:
        return len(self.lines)

    def __getitem__(self, row: int) -> Pair | Conversation:
        return self.pair(row) if self.kind is CacheKind.PREFERENCE else self.conversation(row)

    def pair(self, row: int) -> Pair:
        """Row `row` of a preference cache."""
        begin, border, middle, end = self.offsets[3 * row : 3 * row + 4]
        tokens = self.tokens
        answers = tokens[border:middle], tokens[middle:end]
        return Pair(int(self.lines[row]), tokens[begin:border], *answers, float(self.weights[row]))

    def conversation(self, row: int) -> Conversation:
        """Row `row` of a conversation cache."""
        assert self.targets is not None
        begin, end = self.offsets[row : row + 2]
        line, weight = int(self.lines[row]), float(self.weights[row])
        return Conversation(line, self.tokens[begin:end], self.targets[begin:end], weight)

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of every row, int64 [rows]: prompt + preferred + non_preferred of a pair."""
        parts = 3 if self.kind is CacheKind.PREFERENCE else 1
        return np.diff(self.offsets[::parts])


def write_cache(folder: Path, kind: CacheKind, rows: Iterable[Pair | Conversation]) -> int:
    """Write `rows`, all of `kind`, into the new folder `folder` as they come, and return their number."""
    folder.mkdir(parents=True)
    with ExitStack() as files:
        tokens = files.enter_context(_Column(folder / "tokens.npy", np.dtype(np.int32)))
        offsets = files.enter_context(_Column(folder / "offsets.npy", np.dtype(np.int64)))
        lines = files.enter_context(_Column(folder / "lines.npy", np.dtype(np.int64)))
        weights = files.enter_context(_Column(folder / "weights.npy", np.dtype(np.float64)))
        pairs = kind is CacheKind.PREFERENCE
        targets = None if pairs else files.enter_context(_Column(folder / "targets.npy", np.dtype(np.bool_)))
        offsets.append([0])
        for row in rows:
            lines.append([row.line])
            weights.append([row.weight])
            for part in (row.prompt, row.preferred, row.non_preferred) if isinstance(row, Pair) else (row.tokens,):
                tokens.append(part)
                offsets.append([tokens.length])
            if targets is not None and isinstance(row, Conversation):
                targets.append(row.targets)
    (folder / KIND_FILE).write_text(json.dumps({"kind": kind}))
    return lines.length


def open_cache(folder: Path) -> TokenCache:
    """Open what `write_cache` wrote with at least one row.

    Raises:
        OSError, ValueError, KeyError: the folder holds no complete cache.
    """
    kind = CacheKind(json.loads((folder / KIND_FILE).read_text())["kind"])
    targets = None if kind is CacheKind.PREFERENCE else _map(folder / "targets.npy")
    tokens, offsets, lines, weights = (_map(folder / f"{n}.npy") for n in ("tokens", "offsets", "lines", "weights"))
    return TokenCache(kind, tokens, offsets, lines, weights, targets)


def _map(path: Path) -> npt.NDArray[Any]:
    array: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    return array


class _Column:
    """A one-dimensional `.npy` file that grows: numpy's header leaves room for the length, which is set at the end."""

    def __init__(self, path: Path, dtype: np.dtype[Any]) -> None:
        self.dtype = dtype
        self.length = 0
        self.file = path.open("wb")
        self._write_header()

    def append(self, values: npt.ArrayLike) -> None:
        array = np.ascontiguousarray(values, dtype=self.dtype)
        self.file.write(array.tobytes())
        self.length += array.size

    def _write_header(self) -> None:
        header = {"descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False, "shape": (self.length,)}
        np.lib.format.write_array_header_1_0(self.file, header)

    def __enter__(self) -> _Column:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.file.seek(0)
        self._write_header()
        self.file.close()
