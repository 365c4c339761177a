"""Numbers on their way from the device: sent for now, read when they are there, so that the device never waits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Late:
    """Named values that may still be being computed."""

    names: tuple[str, ...]
    values: Tensor
    """fp64 [names], on the CPU; what it holds means something once `arrived` has happened."""
    arrived: torch.cuda.Event | None

    @staticmethod
    def of(names: tuple[str, ...], values: Tensor) -> Late:
        """Send for `values`, [names] on any device, behind the work that makes them."""
        if values.device.type != "cuda":
            return Late(names, values, None)
        host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
        host.copy_(values, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record()
        return Late(names, host, arrived)

    def read(self) -> dict[str, float]:
        """The numbers; waits for the work that makes them, and for nothing that was asked of the device later."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return dict(zip(self.names, self.values.tolist(), strict=True))
