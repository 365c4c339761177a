"""A bound on how long a template may render: templates are programs, and the sandbox lets them loop."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

TEMPLATE_SECONDS = 30.0
"""A row takes milliseconds; a template that is not done by then never will be."""


class TookTooLong(Exception):
    """The time was up."""


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """End the block with TookTooLong when `seconds` are over. In the main thread only, where signals arrive.

    A timer of somebody else goes on afterwards.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    begun = time.monotonic()
    handler = signal.signal(signal.SIGALRM, _late)
    left, period = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        if left:
            signal.setitimer(signal.ITIMER_REAL, max(left - (time.monotonic() - begun), 0.001), period)


def _late(_number: int, _frame: FrameType | None) -> None:
    raise TookTooLong
