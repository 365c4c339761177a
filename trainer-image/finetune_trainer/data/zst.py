"""Zstandard as a stream that notices when it was cut off, and whose memory is bounded whatever it unpacks to."""

from __future__ import annotations

import io
from typing import BinaryIO

import zstandard

from finetune_trainer.data.rows import Damaged

FEED_BYTES = 2048
"""A block of at most 128 KiB takes at least 4 bytes, so one helping unpacks to at most 64 MiB."""
MAX_WINDOW_BYTES = 1 << 27
"""What the format's own tool takes without being asked for more."""


class ZstStream(io.RawIOBase):
    """The unpacked bytes of `file`, all its frames one after the other.

    Raises:
        Damaged: what is read is no such stream, or ends in the middle of a frame.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._frame = self._next_frame()
        self._begun = False
        self._packed = b""
        self._unpacked = memoryview(b"")

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        """Fill `buffer`; 0 at the end."""
        while not self._unpacked and self._more():
            pass
        size = min(len(buffer), len(self._unpacked))
        buffer[:size] = self._unpacked[:size]
        self._unpacked = self._unpacked[size:]
        return size

    def _more(self) -> bool:
        """Unpack the next helping; False at the end."""
        if self._frame.eof:
            self._packed, self._begun = self._frame.unused_data, False
            self._frame = self._next_frame()
        packed = self._packed or self._file.read(FEED_BYTES)
        self._packed = b""
        if not packed:
            if self._begun:
                raise Damaged
            return False
        self._begun = True
        try:
            self._unpacked = memoryview(self._frame.decompress(packed))
        except zstandard.ZstdError as error:
            raise Damaged from error
        return True

    @staticmethod
    def _next_frame() -> zstandard.ZstdDecompressionObj:
        return zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_BYTES).decompressobj()
