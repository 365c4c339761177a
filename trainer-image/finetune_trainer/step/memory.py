"""Whether a micro-batch fits into memory: what running out of it looks like, and what an attempt leaves behind."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor

from finetune_api.failures import FailureCode
from finetune_trainer.failures import RunFailed, failed
from finetune_trainer.step.recipe import FROZEN_SHARE

RAN_OUT = "can't allocate memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED"
"""How torch says it where it has no class for it: on the CPU, in a driver, in a library."""

Result = TypeVar("Result")


def ran_out(error: BaseException) -> bool:
    """Whether `error` says that memory ran out."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in RAN_OUT)


def within(device: torch.device, attempt: Callable[[], Result]) -> Result | None:
    """What `attempt` returns; None where memory ran out, and then nothing of the attempt holds memory any more."""
    try:
        return attempt()
    except (RuntimeError, MemoryError) as error:
        if not ran_out(error):
            raise
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
    return None


@contextmanager
def weights_fit(device: torch.device) -> Iterator[None]:
    """Running out of memory where no row is to blame, as a cause.

    Raises:
        RunFailed: ModelTooLarge.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not ran_out(error):
            raise
        raise failed(FailureCode.MODEL_TOO_LARGE, device=named(device)) from error


def named(device: torch.device) -> str:
    """The device in words: `CPU`, or the GPU's name and size."""
    if device.type != "cuda":
        return device.type.upper()
    properties = torch.cuda.get_device_properties(device)
    return f"{properties.name} ({properties.total_memory / 2**30:.0f} GiB)"


def measurable(device: torch.device) -> bool:
    """Whether it can be known how much memory a pass takes, and how much there is."""
    return device.type == "cuda"


def most_frozen(device: torch.device) -> float:
    """Bytes of weights that are not trained and that each process may hold whole."""
    if not measurable(device):
        return math.inf
    return FROZEN_SHARE * torch.cuda.get_device_properties(device).total_memory


def none_can_go_on(device: torch.device, tokens: int, processes: int) -> RunFailed:
    """The cause where memory ran out on one of the processes that share the weights, which wait for it in vain."""
    return failed(FailureCode.SHARED_OUT_OF_MEMORY, device=named(device), tokens=tokens, processes=processes)


def free(device: torch.device) -> int:
    """Bytes of a GPU that a pass may still take, those included that torch holds in reserve."""
    available, _total = torch.cuda.mem_get_info(device)
    return available + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def peak(device: torch.device, attempt: Callable[[], Result]) -> tuple[Result, int]:
    """What `attempt` returns, and the most bytes of a GPU that it took at once."""
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    result = attempt()
    return result, torch.cuda.max_memory_allocated(device) - before


@contextmanager
def random_state_kept(device: torch.device) -> Iterator[None]:
    """Whatever is drawn inside, the generators go on afterwards as if nothing had been."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


def random_state(device: torch.device) -> tuple[Tensor, ...]:
    """The state of the generators that a pass on `device` draws from."""
    host = torch.get_rng_state()
    return (host, torch.cuda.get_rng_state(device)) if device.type == "cuda" else (host,)


def set_random_state(device: torch.device, state: tuple[Tensor, ...]) -> None:
    """Put back what `random_state` gave."""
    torch.set_rng_state(state[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state[1], device)
