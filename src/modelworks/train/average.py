"""An exponential average of the weights (EMA), evaluated and kept in place of the last ones."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from .optim import named
from .sharded import local


class Average:
    """`average <- decay * average + (1 - decay) * weights` after every step.

    While few steps were taken the decay is min(decay, (1 + n) / (10 + n)), so that the first weights are soon
    forgotten (as in TensorFlow's ExponentialMovingAverage). Averages are float32 or wider.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.steps = 0
        self.weights = {name: parameter for name, _, parameter in named(model)}
        self.averages = {
            name: p.detach().to(torch.promote_types(p.dtype, torch.float32), copy=True)
            for name, p in self.weights.items()
        }

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights as they are now."""
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        self.steps += 1
        averages = [local(a) for a in self.averages.values()]
        weights = [local(w).to(a.dtype) for w, a in zip(self.weights.values(), averages, strict=True)]
        torch._foreach_lerp_(averages, weights, 1 - decay)

    @torch.no_grad()
    def apply(self) -> None:
        """Put the averages into the model for good."""
        _copy(self.weights.values(), self.averages.values())

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """The model holds the averages inside the block and its own weights, bit for bit, after it."""
        with torch.no_grad():
            kept = [w.detach().clone() for w in self.weights.values()]
            self.apply()
        try:
            yield
        finally:
            with torch.no_grad():
                _copy(self.weights.values(), kept)

    def tensors(self) -> dict[str, Tensor]:
        """The averages by parameter name."""
        return dict(self.averages)

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor], steps: int) -> None:
        """Take back what `tensors` gave after `steps` updates."""
        self.steps = steps
        for name, average in self.averages.items():
            average.copy_(tensors[name])


def _copy(into: Iterable[Tensor], tensors: Iterable[Tensor]) -> None:
    """Each tensor's numbers, or this rank's shard of them, into the one in its place."""
    torch._foreach_copy_([local(tensor) for tensor in into], [local(tensor) for tensor in tensors])
