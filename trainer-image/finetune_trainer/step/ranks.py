"""The processes that train as one: each computes its share of every step, and all of them know the same numbers.

Whatever decides how it goes on (a stop, too little memory, the end of a period) is agreed before anybody acts on it:
so none waits for a word that another will never say. Only the first process writes files and tells of the run. When one
is lost the others end too, and the run goes on from its newest state, with as many processes as come back.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

from finetune_trainer.failures import PeerLost

GLOO = "gloo"
PATIENCE = timedelta(hours=24)
"""How long one waits for another that is there and silent: longer than the first one merges, publishes and pushes. One
that ends is noticed at once."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among those that train together. Each method is called by all of them, in the same order."""

    rank: int = 0
    size: int = 1
    local: int = 0
    """Its place among those of its pod, and so which GPU is its own."""
    behind: dist.ProcessGroup | None = None
    """The same processes once more, for what their background threads agree on."""

    @property
    def first(self) -> bool:
        """Whether it is the one that writes and tells."""
        return self.rank == 0

    def most(self, value: int) -> int:
        """The largest of the values that the processes give."""
        if self.size == 1:
            return value
        given = torch.tensor([value])
        dist.all_reduce(given, dist.ReduceOp.MAX)
        return int(given)

    def any(self, flag: bool) -> bool:
        """Whether it holds for one of them."""
        return self.most(flag) > 0

    def wait(self) -> None:
        """Until all have come here."""
        self.most(0)

    def exchange_behind(self, given: dict[str, str]) -> dict[str, str]:
        """What the background threads of all give, together, once all have come here."""
        text = bytearray(json.dumps(given).encode())
        longest = torch.tensor([len(text)])
        dist.all_reduce(longest, dist.ReduceOp.MAX, group=self.behind)
        text.extend(b" " * (int(longest) - len(text)))
        texts = [torch.empty(len(text), dtype=torch.uint8) for _ in range(self.size)]
        dist.all_gather(texts, torch.frombuffer(text, dtype=torch.uint8), group=self.behind)
        return {key: value for one in texts for key, value in json.loads(bytes(one.tolist())).items()}

    def total(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, in place; each gets the same bits."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def copied(self, tensor: Tensor) -> Tensor:
        """What the first process gives, in place."""
        if self.size > 1:
            dist.broadcast(tensor, src=0)
        return tensor

    def text(self, text: str) -> str:
        """What the first process gives."""
        if self.size == 1:
            return text
        given = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8) if self.first else torch.empty(0)
        length = self.most(len(given))
        held = given if self.first else torch.empty(length, dtype=torch.uint8)
        return bytes(self.copied(held).tolist()).decode()

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Give every parameter, all of which have a gradient, the sum of those on all processes, in one exchange."""
        moving = list(parameters)
        if self.size == 1 or not moving:
            return
        flat = torch.cat([p.grad.flatten() for p in moving if p.grad is not None])
        self.total(flat)
        for parameter, gradient in zip(moving, flat.split([p.numel() for p in moving]), strict=True):
            parameter.grad = gradient.view_as(parameter)


ALONE = Ranks()


@contextmanager
def meeting() -> Iterator[Ranks]:
    """Meet the other processes, as torchrun's environment says, and part from them at the end.

    Raises:
        PeerLost: they do not all come, or one ends before the others.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield ALONE
        return
    rank, local = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
    backend = GLOO
    if torch.cuda.is_available():
        backend = f"cpu:{GLOO},cuda:nccl"
        torch.cuda.set_device(local)
    try:
        dist.init_process_group(backend, timeout=PATIENCE)
        behind = dist.new_group(backend=GLOO, timeout=PATIENCE)
        assert isinstance(behind, dist.ProcessGroup)
        yield Ranks(rank, size, local, behind)
    except RuntimeError as error:
        if is_of_exchange(error):
            raise PeerLost(str(error)) from error
        raise
    dist.destroy_process_group()  # not after a failure, when it may wait for those that are gone


def is_of_exchange(error: Exception) -> bool:
    """Whether something failed between processes: one has ended, or does not answer. gloo has no class for it."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and GLOO in str(error))
