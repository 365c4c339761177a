"""Images as a vision encoder takes them, made of their files by the model's own processor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from finetune_trainer.picture import opened, upright

Bytes: TypeAlias = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Pixels:
    """The images of a sequence."""

    values: Tensor
    """fp32 [patches, numbers of a patch], image after image."""
    grid: Tensor
    """int64 [images, 3]: frames, rows and columns of patches of each."""

    def each(self, change: Callable[[Tensor], Tensor]) -> Pixels:
        """The same with every tensor changed."""
        return Pixels(change(self.values), change(self.grid))

    def arguments(self, tokens: Tensor, token: int) -> dict[str, Tensor]:
        """What the model's forward gets beside `tokens`, int64 [1, tokens], of which `token` stands for images."""
        kinds = (tokens == token).int()
        return {"pixel_values": self.values, "image_grid_thw": self.grid, "mm_token_type_ids": kinds}


class ImageProcessor:
    """The processor in a model's folder: Pillow's and not torchvision's, which is one library less."""

    def __init__(self, folder: Path) -> None:
        self._processor: Any = Qwen2VLImageProcessorPil.from_pretrained(folder, local_files_only=True)

    def __call__(self, images: Sequence[Bytes]) -> Pixels:
        """Pixels of the files of a row's images, at least one, as viewers turn them and without transparency."""
        made = [self._one(image.tobytes()) for image in images]
        return Pixels(torch.cat([one.values for one in made]), torch.cat([one.grid for one in made]))

    def _one(self, image: bytes) -> Pixels:
        """Of one image, so that no more than one is there in the size of its file."""
        made = self._processor(images=[upright(opened(image))], return_tensors="pt")
        return Pixels(made["pixel_values"], made["image_grid_thw"])
