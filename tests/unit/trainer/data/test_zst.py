"""Zstandard as a stream: cut off it says so, and a little of it may unpack to very much."""

import io

import pytest
import zstandard

from finetune_trainer.data import zst
from finetune_trainer.data.rows import Damaged
from finetune_trainer.data.zst import ZstStream


def test_a_stream_is_what_was_packed():
    content = bytes(range(256)) * 4000
    for packed in (zstandard.compress(content), zstandard.compress(content[:9]) + zstandard.compress(content[9:])):
        assert io.BufferedReader(ZstStream(io.BytesIO(packed))).read() == content


@pytest.mark.parametrize("cut", [1, 5, 100])
def test_a_stream_that_ends_early_is_damaged(cut):
    packed = zstandard.compress(bytes(range(256)) * 100)
    with pytest.raises(Damaged):
        io.BufferedReader(ZstStream(io.BytesIO(packed[:-cut]))).read()


def test_what_is_no_frame_is_damaged():
    with pytest.raises(Damaged):
        ZstStream(io.BytesIO(b"\x28\xb5\x2f\xfd" + b"\xff" * 50)).read(10)


def test_a_helping_is_bounded_however_well_it_was_packed():
    packed = zstandard.compress(b"\x00" * (256 << 20))
    stream = ZstStream(io.BytesIO(packed))
    largest = 0
    while stream.read(1 << 16):
        largest = max(largest, len(stream._unpacked))
    assert len(packed) > zst.FEED_BYTES
    assert largest <= 64 << 20
