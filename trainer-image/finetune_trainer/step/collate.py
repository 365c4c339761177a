"""Micro-batches made ahead by one background thread, while the device works on the one before.

One thread and no worker processes: the rows lie in a memory map and putting one micro-batch together takes
milliseconds. What is made, and in which order, is the same as without a thread.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeAlias, TypeVar

from finetune_trainer.step.batch import MicroBatch

Planned = TypeVar("Planned")
Made: TypeAlias = Generator[tuple[Planned, MicroBatch], None, None]


def collated(planned: Sequence[Planned], make: Callable[[Planned], MicroBatch]) -> Made[Planned]:
    """Each of `planned` with the micro-batch that `make` makes of it, the next being made while this one is used.

    What `make` raises is raised where its micro-batch would have come. Close the iterator to end the thread early.
    """
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="collate") as thread:
        pending = [thread.submit(make, first) for first in planned[:1]]
        for place, one in enumerate(planned, start=1):
            batch = pending.pop().result()
            pending += [thread.submit(make, following) for following in planned[place : place + 1]]
            yield one, batch
