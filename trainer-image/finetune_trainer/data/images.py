"""Images in rows: the rules that they are held to, and what is known of them before a model sees them.

An image lies in its row as a URL that holds the file itself. Torch is not needed for any of this and not imported.
"""

from __future__ import annotations

import base64
import binascii
import re
import warnings
from collections.abc import Iterable, Iterator

from PIL import Image

from finetune_api.findings import DataErrorCode as Code
from finetune_trainer.data.rows import Problem, Row
from finetune_trainer.picture import DAMAGED, opened, size_of, upright

IMAGE_URL = "image_url"
"""Type of a part that is an image, and its key."""
MAX_IMAGES = 10
"""Images of a row."""
MAX_BYTES = 10 * 1024**2
"""Size of an image's file."""
MAX_PIXELS = 2**26
MAX_RATIO = 200
"""Of the longer side to the shorter: beyond it Qwen's processors refuse an image."""
URL = re.compile(r"data:image/(?:jpeg|png|webp);base64,")
WIDE = "I"
"""Modes of more than 8 bits a channel, of which nothing but white would be left."""


def check_image(path: str, part: Row) -> Iterator[Problem]:
    """The rules of one part of type image_url: a whole image of a known kind and a sensible size, in its URL."""
    found = part.get(IMAGE_URL)
    url = found.get("url") if isinstance(found, dict) else None
    if not isinstance(url, str):
        yield Problem(f"{path}.{IMAGE_URL}.url", Code.WRONG_TYPE)
    elif code := _fault(url):
        yield Problem(f"{path}.{IMAGE_URL}.url", code)


def for_template(part: Row) -> Row:
    """A good image in the shape that templates expect, with its size in pixels."""
    url = part[IMAGE_URL]["url"]
    height, width = size_of(opened(file_of(url)))
    return {"type": "image", "image": url, "height": height, "width": width}


def images_in(messages: Iterable[Row]) -> list[Row]:
    """The images of messages that are ready for a template, in the order in which it renders them."""
    parts = (part for message in messages if isinstance(message["content"], list) for part in message["content"])
    return [part for part in parts if part["type"] == "image"]


def file_of(url: str) -> bytes:
    """The bytes of the file that a URL holds.

    Raises:
        ValueError: they are no base64.
    """
    return base64.b64decode(url.partition(",")[2], validate=True)


def _fault(url: str) -> Code | None:
    if not (begin := URL.match(url)):
        return Code.INVALID_IMAGE
    if (len(url) - begin.end()) // 4 * 3 - url[-2:].count("=") > MAX_BYTES:
        return Code.IMAGE_TOO_LARGE
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = opened(file_of(url))
        if image.width * image.height > MAX_PIXELS:
            return Code.IMAGE_TOO_LARGE
        height, width = size_of(image)
        upright(image)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        return Code.IMAGE_TOO_LARGE
    except (binascii.Error, *DAMAGED):
        return Code.INVALID_IMAGE
    if image.mode.startswith(WIDE):
        return Code.INVALID_IMAGE
    return Code.IMAGE_TOO_NARROW if max(height, width) > MAX_RATIO * min(height, width) else None
