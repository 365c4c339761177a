"""An adapter merged into its base, file by file: W + scale * B @ A, in fp32, cast once.

A merged file is a copy of the base's in which the bytes of the adapted tensors are replaced. So names, shapes,
precision, shards and tied weights are the base's own, and no more than one tensor is in memory.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import torch
from safetensors.torch import load_file
from torch import Tensor

from finetune_api.failures import FailureCode
from finetune_trainer.failures import RunFailed, failed
from finetune_trainer.files import ADAPTER_WEIGHTS, MODEL_INDEX, weight_files
from finetune_trainer.remote_code import code_files

ADAPTER_CONFIG = "adapter_config.json"
COPIED = ("config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json", MODEL_INDEX)
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
WHOLE = ("F64", "F32")
"""Precisions in which a merge loses nothing to speak of."""
BLOCK_ELEMENTS = 2**24
"""Elements of a tensor that are merged at once."""


class StoredLayer(Protocol):
    """Where the weight of an adapted layer lies in the files of the base."""

    @property
    def tensor(self) -> str:
        """Its name there."""

    @property
    def transposed(self) -> bool:
        """Whether it is kept as [in, out]."""


@dataclass(frozen=True, slots=True)
class Update:
    """What an adapter adds to one weight: scale * left @ right, of that weight's shape."""

    left: Tensor
    right: Tensor
    scale: float

    @property
    def shape(self) -> list[int]:
        """Of the weight."""
        return [self.left.shape[0], self.right.shape[1]]

    def rows(self, begin: int, end: int, compute: torch.dtype) -> Tensor:
        """Rows of the addend."""
        return self.scale * (self.left[begin:end].to(compute) @ self.right.to(compute))


@dataclass(frozen=True, slots=True)
class Merger:
    """An adapter and the base that it belongs to."""

    base: Path
    model: str
    """What people call the base."""
    adapter: Path
    layers: Mapping[str, StoredLayer]
    """The adapted layers by their path in the model."""

    def write(self, target: Path) -> bool:
        """Write the merged weights and their configuration into the folder `target`.

        Returns:
            whether no adapted weight was cast to less than fp32.

        Raises:
            RunFailed: MergeFailed: the adapter's tensors are not those of `layers`, a tensor is missing in the files
                of the base or has another shape or no known precision, or a merged number is not finite.
            OSError: a file cannot be read or written.
        """
        left, whole = self._updates(), True
        for file in weight_files(self.base):
            shutil.copyfile(file, target / file.name)
            with (target / file.name).open("r+b") as copy:
                for name, place in _places(copy).items():
                    if (update := left.pop(name, None)) is not None:
                        self._merge(copy, name, place, update)
                        whole = whole and place.stored_as in WHOLE
        if left:
            raise self._failed(f"its files have no tensor {min(left)}")
        for path in (*(self.base / name for name in COPIED), *code_files(self.base)):
            if path.is_file():
                shutil.copyfile(path, target / path.name)
        return whole

    def _updates(self) -> dict[str, Update]:
        """What is added to each tensor of the base's files; every tensor of the adapter has its part in it."""
        weights = load_file(self.adapter / ADAPTER_WEIGHTS)
        config = json.loads((self.adapter / ADAPTER_CONFIG).read_text())
        scale = config["lora_alpha"] / (math.sqrt(config["r"]) if config.get("use_rslora") else config["r"])
        updates = {}
        for path, layer in self.layers.items():
            names = (f"base_model.model.{path}.lora_{part}.weight" for part in "BA")
            b, a = (weights.pop(name, None) for name in names)
            if a is None or b is None:
                raise self._failed(f"the adapter has no tensors for the layer {path}")
            sides = (a.T, b.T) if layer.transposed else (b, a)
            updates[layer.tensor] = Update(*sides, scale)
        if weights:
            raise self._failed(f"no layer of the model is meant by the adapter's tensor {min(weights)}")
        return updates

    def _merge(self, file: BinaryIO, name: str, place: _Place, update: Update) -> None:
        """Replace one tensor, a block of rows at a time."""
        if place.dtype is None:
            raise self._failed(f"{name} has the precision {place.stored_as}")
        if place.shape != update.shape:
            raise self._failed(f"{name} has the shape {place.shape}, its adapter is for {update.shape}")
        compute = torch.promote_types(place.dtype, torch.float32)
        rows, columns = place.shape
        step = max(1, BLOCK_ELEMENTS // columns)
        for begin in range(0, rows, step):
            end = min(begin + step, rows)
            at = place.begin + begin * columns * place.dtype.itemsize
            file.seek(at)
            data = bytearray(file.read((end - begin) * columns * place.dtype.itemsize))
            block = torch.frombuffer(data, dtype=place.dtype).view(end - begin, columns)
            block.copy_(block.to(compute) + update.rows(begin, end, compute))
            if not torch.isfinite(block).all():
                raise self._failed(f"{name} is not finite after merging")
            file.seek(at)
            file.write(data)

    def _failed(self, problem: str) -> RunFailed:
        return failed(FailureCode.MERGE_FAILED, model=self.model, problem=problem)


@dataclass(frozen=True, slots=True)
class _Place:
    """A tensor in a safetensors file."""

    stored_as: str
    shape: list[int]
    begin: int
    """Offset in the file."""

    @property
    def dtype(self) -> torch.dtype | None:
        return DTYPES.get(self.stored_as)


def _places(file: BinaryIO) -> dict[str, _Place]:
    """Where the tensors lie: 8 bytes of length (little-endian), a JSON header of that length, then the data."""
    size = int.from_bytes(file.read(8), "little")
    header: dict[str, dict[str, Any]] = json.loads(file.read(size))
    header.pop("__metadata__", None)
    return {name: _Place(t["dtype"], t["shape"], 8 + size + t["data_offsets"][0]) for name, t in header.items()}
