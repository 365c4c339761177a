"""The precision in which a product is computed, for code that autocast does not see into."""

from __future__ import annotations

import torch
from torch import Tensor


def computed_in(x: Tensor, otherwise: torch.dtype) -> torch.dtype:
    """That of autocast on the device of `x`, or `otherwise` where it is off."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else otherwise
