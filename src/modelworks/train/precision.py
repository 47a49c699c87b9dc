"""bfloat16 weights with float32 masters: the model's own parameters are the masters, and stay so for everyone else.

Optimiser, averages, checkpoints and the saved model see float32 weights and float32 gradients. Only inside
`lowered`, while losses and gradients are worked out, do the parameters hold bfloat16 copies: every product, norm and
sum of the model then moves half the bytes, which autocast (float32 between the products) does not save.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn


class Lowered:
    """Lends a model's float32 parameters a lower format for the time of a block; nothing where that is float32.

    Each parameter's gradient joins a float32 sum as soon as it is there, so that micro-batches add up in float32
    and no second set of gradients is held. Kept between blocks: the copies (2 bytes a parameter) and the sums (4).
    """

    def __init__(self, model: nn.Module) -> None:
        self.parameters = [p for p in model.parameters() if p.dtype == torch.float32]
        self.copies: list[Tensor] = []
        self.sums: dict[nn.Parameter, Tensor] = {}
        self._new: set[nn.Parameter] = set()
        self._on = False

    @contextlib.contextmanager
    def __call__(self, dtype: torch.dtype) -> Iterator[None]:
        """Inside the block the parameters are in `dtype`; after it they are what they were, with float32 gradients."""
        if dtype == torch.float32 or self._on:
            yield
            return
        masters = [p.data for p in self.parameters]
        if not self.copies or self.copies[0].dtype != dtype:
            self.copies = [torch.empty_like(master, dtype=dtype) for master in masters]
        torch._foreach_copy_(self.copies, masters)
        learning = [p for p in self.parameters if p.requires_grad and torch.is_grad_enabled()]
        self._new = {p for p in learning if p.grad is None}
        self.sums |= {p: p.grad for p in learning if p.grad is not None}
        hooks = [p.register_post_accumulate_grad_hook(self._add) for p in learning]
        self._lend(self.copies)
        self._on = True
        try:
            yield
        finally:
            self._on = False
            for hook in hooks:
                hook.remove()
            self._lend(masters)
            for p in learning:
                p.grad = None if p in self._new else self.sums[p]

    def _lend(self, tensors: list[Tensor]) -> None:
        for p, tensor in zip(self.parameters, tensors, strict=True):
            p.grad = None  # its format must be the parameter's
            p.data = tensor

    def _add(self, parameter: Tensor) -> None:
        gradient = parameter.grad
        assert gradient is not None and isinstance(parameter, nn.Parameter)
        if parameter not in self.sums:
            self.sums[parameter] = torch.empty_like(gradient, dtype=torch.float32)
        if parameter in self._new:
            self._new.discard(parameter)
            self.sums[parameter].copy_(gradient)
        else:
            self.sums[parameter].add_(gradient)
        parameter.grad = None
