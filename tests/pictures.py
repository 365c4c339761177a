"""Images in rows: pictures made in code, as URLs that hold them, and rows that ask about them."""

from __future__ import annotations

import base64
import random
from io import BytesIO

from PIL import ExifTags, Image

from rows import assistant

COLOURS = {"red": (220, 30, 20), "green": (20, 200, 40), "blue": (30, 40, 230), "white": (250, 250, 250)}


def picture(width: int = 32, height: int = 32, colour: str = "red", kind: str = "PNG", orientation: int = 1) -> str:
    """A picture of one colour with a darker half, below or, as the camera lay, elsewhere."""
    image = Image.new("RGB", (width, height), COLOURS[colour])
    image.paste(tuple(part // 3 for part in COLOURS[colour]), (0, height // 2, width, height))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    file = BytesIO()
    image.save(file, kind, exif=exif)
    return url_of(file.getvalue(), kind)


def url_of(file: bytes, kind: str = "PNG") -> str:
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file).decode()}"


def part(url: str) -> dict:
    return {"type": "image_url", "image_url": {"url": url}}


def shown(*content: str) -> dict:
    """What the user says: texts, and URLs of pictures, which become images."""
    parts = (part(one) if one.startswith("data:") else {"type": "text", "text": one} for one in content)
    return {"role": "user", "content": list(parts)}


def pair_about(*content: str, preferred: str = "this", non_preferred: str = "that") -> dict:
    """A preference row about what the user shows."""
    return {
        "input": {"messages": [shown(*content)]},
        "preferred_output": [assistant(preferred)],
        "non_preferred_output": [assistant(non_preferred)],
    }


def colour_pairs(count: int, seed: int = 0, without: int = 0) -> list[dict]:
    """Which colour is it? The answer is in the image alone. Sizes differ; the last `without` rows have no image."""
    chance, rows = random.Random(seed), []
    for number in range(count):
        right, wrong = chance.sample(sorted(COLOURS), 2)
        sizes = chance.choice((16, 32, 48)), chance.choice((24, 32, 40))
        content = [picture(*sizes, colour=right, kind=chance.choice(("PNG", "WEBP")))]
        if number >= count - without:
            content = [f"The colour is {right}."]
        rows.append(pair_about(*content, f"Row {number}: which colour?", preferred=right, non_preferred=wrong))
    return rows


def colour_talks(count: int, seed: int = 0, without: int = 0) -> list[dict]:
    """The same as conversations."""
    rows = colour_pairs(count, seed, without)
    return [{"messages": [*row["input"]["messages"], *row["preferred_output"]]} for row in rows]
