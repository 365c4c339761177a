"""An image's file as a model and a person see it: whole, upright, in red, green and blue.

What checks images, what makes pixels of them and what shows them all open them here, so that none meets what another
did not.
"""

from __future__ import annotations

import struct
from io import BytesIO
from typing import Any

from PIL import ExifTags, Image
from PIL.Image import Transpose

KINDS = ("JPEG", "PNG", "WEBP")
DAMAGED = (
    *(OSError, SyntaxError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError, MemoryError),
    struct.error,
)
"""What Pillow raises for a file that is none, or not whole, or made to do harm."""
TURNS = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}
"""What brings an image upright, by its EXIF orientation."""
ON_ITS_SIDE = range(5, 9)
"""Orientations by which height and width change places."""


def opened(file: bytes) -> Image.Image:
    """The image of a file of a known kind, of which no more than its head is read yet.

    Raises:
        one of DAMAGED; Image.DecompressionBombError.
    """
    return Image.open(BytesIO(file), formats=KINDS)


def size_of(image: Image.Image) -> tuple[int, int]:
    """Height and width in pixels, as a viewer shows it.

    Raises:
        one of DAMAGED.
    """
    width, height = image.size
    return (width, height) if _orientation(image) in ON_ITS_SIDE else (height, width)


def upright(image: Image.Image) -> Image.Image:
    """All of an image, turned as its camera says, without transparency.

    Pillow's own function for that writes the whole EXIF block anew, which fails on odd entries in it.

    Raises:
        one of DAMAGED.
    """
    image.load()
    turn = TURNS.get(_orientation(image))
    return (image if turn is None else image.transpose(turn)).convert("RGB")


def _orientation(image: Image.Image) -> int:
    found: Any = image.getexif().get(ExifTags.Base.Orientation, 1)
    return found if isinstance(found, int) else 1
