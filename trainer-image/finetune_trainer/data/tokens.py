"""The token cache: what prepare writes once and training reads through memory maps, row by row.

A cache is a folder of plain `.npy` files, nothing pickled: `tokens` holds all rows end to end, `offsets` where each
part of a row begins, `lines` the line of the data file that a row came from, `weights` the factor of its loss. Where
rows have images, `images` holds their files end to end, `image_offsets` where each begins, `image_rows` how many come
before each row. Writing and reading need memory for one row only.
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
ByteArray: TypeAlias = npt.NDArray[np.uint8]

Images: TypeAlias = tuple[ByteArray, ...]
"""Files of a row's images (JPEG, PNG or WEBP), in the order in which their tokens stand."""

KIND_FILE = "cache.json"
IMAGE_COLUMNS = ("images", "image_offsets", "image_rows")


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
    images: Images = ()


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
    images: Images = ()


@dataclass(frozen=True, slots=True)
class ImageStore:
    """The images of a cache."""

    files: ByteArray
    """All of them end to end."""
    offsets: npt.NDArray[np.int64]
    """Where each begins, [images + 1]."""
    rows: npt.NDArray[np.int64]
    """How many come before each row, [rows + 1]."""

    def of(self, row: int) -> Images:
        """Those of a row."""
        first, end = self.rows[row : row + 2]
        return tuple(self.files[self.offsets[i] : self.offsets[i + 1]] for i in range(first, end))


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
    images: ImageStore | None = None
    """None: no row has any."""

    def __len__(self) -> int:
        return len(self.lines)

    def __getitem__(self, row: int) -> Pair | Conversation:
        return self.pair(row) if self.kind is CacheKind.PREFERENCE else self.conversation(row)

    def pair(self, row: int) -> Pair:
        """Row `row` of a preference cache."""
        begin, border, middle, end = self.offsets[3 * row : 3 * row + 4]
        tokens = self.tokens
        answers = tokens[border:middle], tokens[middle:end]
        return Pair(int(self.lines[row]), tokens[begin:border], *answers, float(self.weights[row]), self._images(row))

    def conversation(self, row: int) -> Conversation:
        """Row `row` of a conversation cache."""
        assert self.targets is not None
        begin, end = self.offsets[row : row + 2]
        line, weight = int(self.lines[row]), float(self.weights[row])
        return Conversation(line, self.tokens[begin:end], self.targets[begin:end], weight, self._images(row))

    def _images(self, row: int) -> Images:
        return self.images.of(row) if self.images else ()

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
        images = files.enter_context(_ImageColumns(folder))
        for row in rows:
            lines.append([row.line])
            weights.append([row.weight])
            for part in (row.prompt, row.preferred, row.non_preferred) if isinstance(row, Pair) else (row.tokens,):
                tokens.append(part)
                offsets.append([tokens.length])
            if targets is not None and isinstance(row, Conversation):
                targets.append(row.targets)
            images.append(row.images)
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
    seen = (folder / f"{IMAGE_COLUMNS[0]}.npy").exists()
    images = ImageStore(*(_map(folder / f"{name}.npy") for name in IMAGE_COLUMNS)) if seen else None
    return TokenCache(kind, tokens, offsets, lines, weights, targets, images)


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


class _ImageColumns(ExitStack):
    """The columns of an `ImageStore`, none of which is left where no row has images."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.paths = [folder / f"{name}.npy" for name in IMAGE_COLUMNS]
        dtypes = np.uint8, np.int64, np.int64
        columns = (_Column(path, np.dtype(dtype)) for path, dtype in zip(self.paths, dtypes, strict=True))
        self.callback(self._remove_empty)  # called last
        self.files, self.offsets, self.rows = map(self.enter_context, columns)
        self.offsets.append([0])
        self.rows.append([0])

    def append(self, images: Images) -> None:
        """Those of the next row."""
        for image in images:
            self.files.append(image)
            self.offsets.append([self.files.length])
        self.rows.append([self.offsets.length - 1])

    def _remove_empty(self) -> None:
        if self.files.length == 0:
            for path in self.paths:
                path.unlink()
