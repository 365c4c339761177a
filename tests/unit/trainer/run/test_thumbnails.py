"""Images of the report are small, upright and few bytes, however large and many the files are."""

from __future__ import annotations

import base64
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from finetune_trainer.run.thumbnails import thumbnails
from pictures import picture


def file(url: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(url.partition(",")[2]), np.uint8)


def noise() -> np.ndarray:
    written = BytesIO()
    Image.effect_noise((600, 600), 200).convert("RGB").save(written, "PNG")
    return np.frombuffer(written.getvalue(), np.uint8)


def shown(url: str) -> Image.Image:
    assert url.startswith("data:image/webp;base64,")
    return Image.open(BytesIO(file(url)))


@pytest.mark.parametrize(("images", "longest"), [(1, 192), (2, 192), (3, 96), (10, 96)])
def test_the_more_images_a_row_has_the_smaller_they_are_shown(images, longest):
    found = thumbnails((file(picture(640, 320)),) * images)
    assert [shown(url).size for url in found] == [(longest, longest // 2)] * images


def test_an_image_is_shown_as_its_camera_says():
    (url,) = thumbnails((file(picture(640, 320, kind="JPEG", orientation=6)),))
    assert shown(url).size == (96, 192)


def test_a_small_image_is_not_made_larger():
    assert shown(*thumbnails((file(picture(16, 8)),))).size == (16, 8)


def test_all_images_of_a_page_take_less_than_a_megabyte_whatever_they_show():
    rows = 10
    assert rows * sum(map(len, thumbnails((noise(),) * 10))) < 2**20
    assert rows * sum(map(len, thumbnails((noise(),) * 2))) < 2**20


def test_a_row_without_images_shows_none():
    assert thumbnails(()) == ()
