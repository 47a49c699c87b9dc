"""Activations by the names that Hugging Face configs give them. Any shape in, the same out."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F


def quick_gelu(x: Tensor) -> Tensor:
    """x sigmoid(1.702 x), CLIP's approximation of GELU."""
    return x * torch.sigmoid(1.702 * x)


tanh_gelu = partial(F.gelu, approximate="tanh")
"""GELU by tanh, as in GPT-2 (Hendrycks & Gimpel 2016)."""

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_new": tanh_gelu,
    "gelu_pytorch_tanh": tanh_gelu,
    "gelu_fast": tanh_gelu,
    "quick_gelu": quick_gelu,
    "relu": F.relu,
    "silu": F.silu,
    "swish": F.silu,
    "tanh": torch.tanh,
}
