"""Feed-forward parts: what a block does to each position alone. Shapes: B batch, T time, D width, F inner width."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from .activation import gated


class FeedForward(nn.Module):
    """down(activation(up(x))): [B, T, D] -> [B, T, F] -> [B, T, D] (Vaswani et al. 2017)."""

    def __init__(self, up: nn.Linear, down: nn.Linear, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.up, self.down, self.activation = up, down, activation

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.activation(self.up(x)))


class GatedFeedForward(nn.Module):
    """down(activation(gate(x)) * up(x)): [B, T, D] -> [B, T, D]; with SiLU it is SwiGLU (Shazeer 2020)."""

    def __init__(self, gate: nn.Linear, up: nn.Linear, down: nn.Linear, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.gate, self.up, self.down, self.activation = gate, up, down, activation

    def forward(self, x: Tensor) -> Tensor:
        return self.down(gated(self.activation, self.gate(x), self.up(x)))
