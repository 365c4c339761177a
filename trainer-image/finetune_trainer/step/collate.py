"""Micro-batches made ahead by one background thread, while the device works on the one before.

One thread and no worker processes: the rows lie in a memory map and putting one micro-batch together takes
milliseconds. What is made, and in which order, is the same as without a thread.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor

from finetune_trainer.step.batch import MicroBatch
from finetune_trainer.step.packing import MicroBatchRows


def collated(
    micro_batches: Sequence[MicroBatchRows], make: Callable[[MicroBatchRows], MicroBatch]
) -> Generator[tuple[MicroBatchRows, MicroBatch], None, None]:
    """Each of `micro_batches` with what `make` makes of it, the next one being made while this one is used.

    What `make` raises is raised where its micro-batch would have come. Close the iterator to end the thread early.
    """
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="collate") as thread:
        pending = [thread.submit(make, rows) for rows in micro_batches[:1]]
        for place, rows in enumerate(micro_batches, start=1):
            batch = pending.pop().result()
            pending += [thread.submit(make, following) for following in micro_batches[place : place + 1]]
            yield rows, batch
