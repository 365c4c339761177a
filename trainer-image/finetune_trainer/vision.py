"""How a model's rows stand for images: each is so many copies of one token, which its pixels replace.

Only what the number of tokens depends on: the pixels are made where torch is (see `step/pixels.py`), by the model's own
processor. Here that would take torch, so the rule by which it resizes is written out; a test holds it to the original.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

VISION_MODELS = ("qwen3_vl",)
"""Values of model_type in config.json."""
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
"""Where a model says how its images are made ready; in the second one among others."""


@dataclass(frozen=True, slots=True)
class Vision:
    """A model that takes images."""

    token: int
    """What stands for a piece of an image, in the vocabulary."""
    patch: int
    """Pixels of a patch's side."""
    merge: int
    """Patches of a token's side."""
    fewest_pixels: int
    most_pixels: int

    def tokens(self, height: int, width: int) -> int:
        """Tokens of an image of so many pixels, each of which stands for merge x merge patches."""
        return math.prod(side // (self.patch * self.merge) for side in self.resized(height, width))

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """The size to which the processor brings an image: whole tokens, the number of pixels within its bounds.

        Source: `smart_resize` of transformers' Qwen2VLImageProcessor.
        """
        unit = self.patch * self.merge
        sides = height, width
        rounded = [round(side / unit) * unit for side in sides]
        if math.prod(rounded) > self.most_pixels:
            shrink = math.sqrt(height * width / self.most_pixels)
            rounded = [max(unit, math.floor(side / shrink / unit) * unit) for side in sides]
        elif math.prod(rounded) < self.fewest_pixels:
            grow = math.sqrt(self.fewest_pixels / (height * width))
            rounded = [math.ceil(side * grow / unit) * unit for side in sides]
        return rounded[0], rounded[1]

    def expanded(self, text: str, token: str, images: Sequence[Mapping[str, Any]]) -> str | None:
        """`text` with `token` as often for each image as that has tokens; None where it does not stand there once."""
        parts = text.split(token)
        if len(parts) != len(images) + 1:
            return None
        counts = [*(self.tokens(image["height"], image["width"]) for image in images), 0]
        return "".join(part + token * count for part, count in zip(parts, counts, strict=True))


def read_vision(folder: Path, config: Mapping[str, Any]) -> Vision | None:
    """How the model in `folder`, with this config.json, takes images; None where it takes none that are known here.

    Raises:
        KeyError, TypeError, ValueError: its files do not fit together.
    """
    if config.get("model_type") not in VISION_MODELS:
        return None
    processor = _processor(folder)
    if processor is None:
        return None
    size = processor.get("size") or {}
    encoder = config["vision_config"]
    vision = Vision(
        token=int(config["image_token_id"]),
        patch=int(processor["patch_size"]),
        merge=int(processor["merge_size"]),
        fewest_pixels=int(processor.get("min_pixels") or size["shortest_edge"]),
        most_pixels=int(processor.get("max_pixels") or size["longest_edge"]),
    )
    if (vision.patch, vision.merge) != (encoder["patch_size"], encoder["spatial_merge_size"]):
        raise ValueError("processor and vision encoder differ")
    return vision


def _processor(folder: Path) -> dict[str, Any] | None:
    for name in PROCESSOR_FILES:
        if (folder / name).is_file():
            found = dict(json.loads((folder / name).read_text()))
            found = found.get("image_processor", found)
            if "patch_size" in found:
                return dict(found)
    return None
