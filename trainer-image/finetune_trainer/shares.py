"""Tensors of which each process may have a share: how shares lie in files, and how any rows are read from them again.

So a state that four processes have written can be read by three: each takes the rows that are its own, from whichever
files they are in.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor


class Share(NamedTuple):
    """What one process has of a tensor: all of it, or some of its rows, which are those of the first dimension."""

    tensor: Tensor
    begin: int = 0
    """The first of the rows."""


def save_shares(shares: Mapping[str, Share], path: Path) -> None:
    """Write a safetensors file; where a share begins, if not at the first row, stands in its metadata.

    Raises:
        OSError, SafetensorError: the file cannot be written.
    """
    begins = {name: str(share.begin) for name, share in shares.items() if share.begin}
    save_file({name: share.tensor.contiguous() for name, share in shares.items()}, path, begins or None)


class _Part(NamedTuple):
    begin: int
    end: int
    file: Any
    """A safetensors file, open."""


class SavedShares:
    """The tensors of some files of `save_shares`, each put together from its shares; read only when asked for."""

    def __init__(self, files: Iterable[Path]) -> None:
        """Raises: OSError, SafetensorError: a file is not there or damaged."""
        self._parts: dict[str, list[_Part]] = defaultdict(list)
        for path in files:
            file: Any = safe_open(path, "pt")
            begins = file.metadata() or {}
            for name in file.keys():  # noqa: SIM118  # it is no mapping
                begin, shape = int(begins.get(name, 0)), file.get_slice(name).get_shape()
                self._parts[name].append(_Part(begin, begin + (shape[0] if shape else 1), file))

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def whole(self, name: str) -> Tensor:
        """All of a tensor."""
        parts = sorted(self._parts[name], key=lambda part: part.begin)
        tensors: list[Tensor] = [part.file.get_tensor(name) for part in parts]
        return tensors[0] if len(tensors) == 1 else torch.cat(tensors)

    def rows(self, name: str, begin: int, count: int) -> Tensor:
        """`count` rows of a tensor from `begin` on; fewer where the files hold no more."""
        slices = [
            part.file.get_slice(name)[max(begin - part.begin, 0) : max(begin + count - part.begin, 0)]
            for part in sorted(self._parts[name], key=lambda part: part.begin)
        ]
        return torch.cat(slices)
