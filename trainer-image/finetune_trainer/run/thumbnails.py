"""Images as the report shows them: small, and in the page itself."""

from __future__ import annotations

import base64
from io import BytesIO

from finetune_trainer.data.tokens import ByteArray, Images
from finetune_trainer.picture import opened, upright

SIDES = {2: 192, 10: 96}
"""Pixels of the longer side, at most, by the images of a row that are shown so: the page stays small."""
QUALITY = 60


def thumbnails(files: Images) -> tuple[str, ...]:
    """URLs that hold the images of a row in a few kilobytes, as viewers turn them."""
    side = next(side for most, side in SIDES.items() if len(files) <= most)
    return tuple(_thumbnail(file, side) for file in files)


def _thumbnail(file: ByteArray, side: int) -> str:
    image = upright(opened(file.tobytes()))
    image.thumbnail((side, side))
    small = BytesIO()
    image.save(small, "WEBP", quality=QUALITY)
    return f"data:image/webp;base64,{base64.b64encode(small.getvalue()).decode()}"
