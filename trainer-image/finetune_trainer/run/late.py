"""Numbers on their way from the device: sent for now, read when they are there, so that the device never waits."""

from __future__ import annotations

from dataclasses import dataclass
from time import monotonic

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Late:
    """Named values that may still be being computed."""

    names: tuple[str, ...]
    values: Tensor
    """fp64 [names], on the CPU; what it holds means something once `arrived` has happened."""
    arrived: torch.cuda.Event | None
    """None where they were there at once."""
    made: float
    """When they were asked for, by `monotonic`."""

    @staticmethod
    def of(names: tuple[str, ...], values: Tensor) -> Late:
        """Send for `values`, [names] on any device, behind the work that makes them."""
        if values.device.type != "cuda":
            return Late(names, values, None, monotonic())
        host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
        host.copy_(values, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record()
        return Late(names, host, arrived, monotonic())

    def read(self) -> tuple[dict[str, float], float]:
        """The numbers, and when, by `monotonic`, the work that makes them was done as far as this process knows.

        Waits for that work, and for nothing that was asked of the device later.
        """
        if self.arrived is not None:
            self.arrived.synchronize()
        done = self.made if self.arrived is None else monotonic()
        return dict(zip(self.names, self.values.tolist(), strict=True)), done
