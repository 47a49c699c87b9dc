"""Number formats: what matrices multiply in (the tensor's own, or autocast's where that is on), what sums add up in."""

from __future__ import annotations

import torch
from torch import Tensor


def matrix_dtype(x: Tensor) -> torch.dtype:
    """bfloat16 inside `torch.autocast("cpu", torch.bfloat16)`, else `x.dtype`."""
    kind = x.device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return x.dtype


def wide_dtype(x: Tensor) -> torch.dtype:
    """What sums and exponentials are worked out in: float32, or float64 where `x` is."""
    return torch.promote_types(x.dtype, torch.float32)
