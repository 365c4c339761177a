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
PREPROCESSOR_FILE, PROCESSOR_FILE = "preprocessor_config.json", "processor_config.json"
"""Where a model says how its images are made ready; in the second one among others, and that one goes first."""
EDGES = frozenset({"shortest_edge", "longest_edge"})
FRAMES = 2
"""Temporal patch size, where a processor does not say."""


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
        if len(parts) != len(images) + 1 or not all(parts[1:-1]):
            return None  # two that touch would be taken for one
        counts = [*(self.tokens(image["height"], image["width"]) for image in images), 0]
        return "".join(part + token * count for part, count in zip(parts, counts, strict=True))


def read_vision(folder: Path, config: Mapping[str, Any]) -> Vision | None:
    """How the model in `folder`, with this config.json, takes images; None where it takes none that are known here.

    Raises:
        KeyError, TypeError, ValueError: its files do not fit together, or ask for more than is known here.
    """
    if config.get("model_type") not in VISION_MODELS or (processor := _processor(folder)) is None:
        return None
    encoder, size = config["vision_config"], dict(processor.get("size") or {})
    fewest, most = (processor.get(name) for name in ("min_pixels", "max_pixels"))
    vision = Vision(
        token=_whole(config["image_token_id"]),
        patch=_whole(processor["patch_size"]),
        merge=_whole(processor["merge_size"]),
        fewest_pixels=_whole(size["shortest_edge"] if fewest is None else fewest),
        most_pixels=_whole(size["longest_edge"] if most is None else most),
    )
    ours = vision.patch, vision.merge, processor.get("temporal_patch_size", FRAMES)
    theirs = encoder["patch_size"], encoder["spatial_merge_size"], encoder["temporal_patch_size"]
    if ours != theirs or processor.get("do_resize") is False or not size.keys() <= EDGES:
        raise ValueError("processor and vision encoder differ")
    return vision


def _whole(number: Any) -> int:
    if type(number) is not int or number < 1:
        raise ValueError("no positive integer")
    return number


def _processor(folder: Path) -> dict[str, Any] | None:
    """What the folder says of images, as transformers looks for it."""
    nested = _read(folder / PROCESSOR_FILE).get("image_processor")
    return dict(nested) if nested else _read(folder / PREPROCESSOR_FILE) or None


def _read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text())) if path.is_file() else {}
