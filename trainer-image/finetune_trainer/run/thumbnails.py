"""Images as the report shows them: small, and in the page itself."""

from __future__ import annotations

import base64
from io import BytesIO

from finetune_trainer.data.tokens import ByteArray
from finetune_trainer.picture import opened, upright

SIDE = 192
"""Pixels of the longer side, at most."""
QUALITY = 60


def thumbnail(file: ByteArray) -> str:
    """A URL that holds the image in a few kilobytes, as viewers turn it."""
    image = upright(opened(file.tobytes()))
    image.thumbnail((SIDE, SIDE))
    small = BytesIO()
    image.save(small, "WEBP", quality=QUALITY)
    return f"data:image/webp;base64,{base64.b64encode(small.getvalue()).decode()}"
