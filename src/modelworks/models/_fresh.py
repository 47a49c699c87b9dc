"""Fresh weights: normal everywhere, biases zero, what writes to the residual stream as the family says."""

from __future__ import annotations

from torch import nn

WRITERS = ("attention.out.weight", "cross.out.weight", "feedforward.down.weight")
"""Matrices whose product is added to the residual stream."""


def initialise(model: nn.Module, std: float, writers: float | None = None) -> None:
    """Normal matrices of standard deviation `std`, `writers` where they write to the residual stream; zero biases.

    `writers` 0 starts each block as identity (Fixup, Zhang et al. 2019: stable from the first step without a
    long warm-up); std / sqrt(2 n_layers) is GPT-2's. Norms keep their ones, and vectors that are no bias stay.
    """
    for name, weight in model.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(weight)
        elif weight.dim() >= 2:
            nn.init.normal_(weight, std=writers if writers is not None and name.endswith(WRITERS) else std)
