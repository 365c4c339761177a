"""Every rule of images is found where it is broken, before any model sees the row."""

from __future__ import annotations

import base64
from io import BytesIO

import pytest
from PIL import Image

from finetune_trainer.data.examples import example_of, images_of
from finetune_trainer.data.gate import CHOSEN, CONVERSATION, PREFERENCE, check_row
from finetune_trainer.data.images import MAX_BYTES, for_template
from pictures import pair_about, part, picture, shown, url_of
from rows import assistant, preference

GOOD = picture()
URL = "input.messages[0].content[0].image_url.url"


def found(row: dict, shape=PREFERENCE) -> list[tuple[str, str]]:
    return [(problem.field, problem.code.value) for problem in check_row(row, shape)]


def cut(url: str, share: float) -> str:
    file = base64.b64decode(url.partition(",")[2])
    return url_of(file[: int(len(file) * share)])


def noise(width: int, height: int, kind: str = "PNG") -> str:
    file = BytesIO()
    Image.effect_noise((width, height), 90).convert("RGB").save(file, kind)
    return url_of(file.getvalue(), kind)


def of_mode(mode: str, kind: str = "PNG") -> str:
    file = BytesIO()
    Image.new(mode, (20, 10)).save(file, kind)
    return url_of(file.getvalue(), kind)


@pytest.mark.parametrize(
    ("mode", "kind"),
    [*((mode, "PNG") for mode in ("1", "L", "LA", "P", "RGBA")), ("L", "JPEG"), ("CMYK", "JPEG"), ("RGBA", "WEBP")],
)
def test_images_of_every_mode_are_good(mode, kind):
    assert found(pair_about(of_mode(mode, kind))) == []


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_images_of_every_kind_are_good(kind):
    assert found(pair_about(picture(kind=kind), "What is it?", picture(8, 8, kind=kind))) == []


def test_an_image_may_call_itself_of_another_known_kind():
    assert found(pair_about(picture(kind="PNG").replace("image/png", "image/jpeg"))) == []


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("https://example.com/cat.png", "InvalidImage"),
        ("data:image/gif;base64,R0lGODlhAQABAAAAACw=", "InvalidImage"),
        ("data:image/png," + GOOD.partition(",")[2], "InvalidImage"),
        ("data:image/png;base64,", "InvalidImage"),
        ("data:image/png;base64,%%%", "InvalidImage"),
        (url_of(b"no image"), "InvalidImage"),
        (cut(noise(64, 64), 0.5), "InvalidImage"),
        (cut(noise(64, 64, "JPEG"), 0.5), "InvalidImage"),
        (cut(noise(64, 64, "WEBP"), 0.5), "InvalidImage"),
        (cut(GOOD, 0.1), "InvalidImage"),
        (of_mode("I;16"), "InvalidImage"),
        (url_of(b"\0" * (MAX_BYTES + 1)), "ImageTooLarge"),
        (picture(8200, 8200), "ImageTooLarge"),
        (picture(12000, 12000), "ImageTooLarge"),
        (picture(2010, 10), "ImageTooNarrow"),
        (picture(10, 2010), "ImageTooNarrow"),
        (7, "WrongType"),
    ],
)
def test_an_image_that_cannot_be_trained_on_is_told_apart(url, code):
    row = preference()
    row["input"]["messages"][0]["content"] = [part(url)]
    assert found(row) == [(URL, code)]


def test_camera_data_that_nobody_can_read_is_a_fault_of_the_image():
    file = BytesIO()
    Image.new("RGB", (20, 10)).save(file, "WEBP", exif=b"II*\0")
    assert found(pair_about(url_of(file.getvalue(), "WEBP"))) == [(URL, "InvalidImage")]


def test_a_file_of_just_the_size_that_is_allowed_is_not_refused_for_it():
    assert found(pair_about(url_of(b"\0" * MAX_BYTES))) == [(URL, "InvalidImage")]


@pytest.mark.parametrize("broken", [None, "data:", [], {}, {"url": None}])
def test_an_image_without_its_url_is_no_image(broken):
    row = preference()
    row["input"]["messages"][0]["content"] = [{"type": "image_url", "image_url": broken}]
    assert found(row) == [(URL, "WrongType")]


@pytest.mark.parametrize("role", ["system", "assistant", "tool"])
def test_only_the_user_shows_images(role):
    row = {"messages": [{"role": role, "content": [part(GOOD)]}, assistant("a")]}
    assert ("messages[0].content[0].type", "ImageNotFromUser") in found(row, CONVERSATION)
    row = pair_about(GOOD)
    row["preferred_output"][0]["content"] = [part(GOOD), {"type": "text", "text": "a"}]
    assert found(row) == [("preferred_output[0].content[0].type", "ImageNotFromUser")]


def test_other_parts_are_still_not_supported():
    row = pair_about(GOOD)
    row["input"]["messages"][0]["content"].append({"type": "video_url", "video_url": {"url": "data:"}})
    assert found(row) == [("input.messages[0].content[1].type", "UnsupportedContent")]


def test_a_message_with_images_is_not_learned():
    message = shown(GOOD, "What?")
    assert found({"messages": [message | {"weight": 1}, assistant("a")]}, CONVERSATION) == [
        ("messages[0].weight", "ImageWeighted")
    ]
    assert found({"messages": [message | {"weight": 0}, assistant("a")]}, CONVERSATION) == []


def test_a_row_has_ten_images_at_most():
    ten = [shown(*[GOOD] * 6), assistant("And?"), shown(*[GOOD] * 4)]
    assert found({"messages": [*ten, assistant("a")]}, CONVERSATION) == []
    eleven = [*ten, assistant("And?"), shown(GOOD), assistant("a")]
    assert found({"messages": eleven}, CONVERSATION) == [("messages", "TooManyImages")]
    row = {"prompt": [shown(*[GOOD] * 11)], "chosen": [assistant("a")], "rejected": [assistant("b")]}
    assert found(row, CHOSEN) == [("prompt", "TooManyImages")]


def test_texts_beside_images_may_be_plain():
    messages = [{"role": "system", "content": "Look."}, shown(GOOD, "What?"), assistant("a")]
    assert found({"messages": messages}, CONVERSATION) == []


@pytest.mark.parametrize(("orientation", "size"), [(1, (20, 40)), (3, (20, 40)), (6, (40, 20)), (8, (40, 20))])
def test_an_image_has_the_size_that_a_viewer_shows(orientation, size):
    image = for_template(part(picture(40, 20, kind="JPEG", orientation=orientation)))
    assert (image["height"], image["width"]) == size


def test_the_images_of_a_row_are_those_of_its_messages_in_order():
    row = pair_about("First", picture(8, 8), "then", picture(16, 16))
    example = example_of(row, PREFERENCE, None)
    assert [image["width"] for image in images_of(example)] == [8, 16]
    assert [part["type"] for part in example.messages[0]["content"]] == ["text", "image", "text", "image"]


def test_what_the_user_says_in_text_parts_alone_is_text():
    assert example_of(pair_about("First ", "then"), PREFERENCE, None).messages[0]["content"] == "First then"
