"""Calibration: what the layers of a built model see when batches run through it, block by block. M rows, K inputs.

The blocks of each stack run in order, each on what the blocks before it give once they are quantised, so that
rounding answers for the errors made before it. Nothing is asked of a family but blocks called with the hidden states.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..base.errors import UserError
from ..nn.stack import Stack

Batch = Tensor | Mapping[str, Any]
"""Tokens int64 [B, T], or the named arguments of the model's call."""
SAMPLE = 512
"""Rows kept of what a layer sees."""


@dataclass(slots=True)
class Seen:
    """What a linear layer was given: gram = sum of x x' [K, K], count of rows, some of the rows, and by whom."""

    gram: Tensor | None = None
    count: int = 0
    rows: list[Tensor] = field(default_factory=list)
    sources: list[Tensor] = field(default_factory=list)
    """The very tensors that came in with the first batch."""

    def add(self, x: Tensor, share: float, gram: bool) -> None:
        """Take note of x [..., K]; `share` of its rows is kept."""
        flat = x.detach().reshape(-1, x.shape[-1]).float()
        if gram:
            product = flat.t() @ flat
            self.gram = product if self.gram is None else self.gram.add_(product)
        self.count += len(flat)
        self.rows.append(flat[:: max(1, round(1 / share))].clone())

    def sample(self) -> Tensor:
        """float32 [M, K]."""
        return torch.cat(self.rows)


class _Arrived(Exception):
    """The first block was reached: the rest of the pass is not needed."""


@dataclass(slots=True)
class Turn:
    """One block's turn: its name in the model, and the calls that it gets, one a batch."""

    name: str
    block: nn.Module
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]]

    def outputs(self, first: int | None = None) -> list[Tensor]:
        """What the block gives for its calls (the first few)."""
        return [self.block(*args, **kwargs) for args, kwargs in self.calls[:first]]

    def watch(self, layers: Mapping[str, nn.Module], gram: bool) -> tuple[dict[str, Seen], dict[str, list[Tensor]]]:
        """Run the block: what each of `layers` saw, and what every other module gave with the first batch."""
        seen = {name: Seen() for name in layers}
        given: dict[str, list[Tensor]] = {}
        rows = sum(args[0].numel() // args[0].shape[-1] for args, _ in self.calls)
        share = min(1.0, SAMPLE / max(1, rows))
        with ExitStack() as hooks:
            for name, layer in layers.items():
                hooks.enter_context(_hooked(layer.register_forward_pre_hook, _noting(seen[name], share, gram)))
            for name, part in self.block.named_modules():
                if part is not self.block:
                    hooks.enter_context(_hooked(part.register_forward_hook, _keeping(given.setdefault(name, []))))
            self.outputs()
        return seen, {name: outputs for name, outputs in given.items() if outputs}


def _noting(seen: Seen, share: float, gram: bool) -> Callable[..., None]:
    def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        if not seen.count:
            seen.sources.append(args[0])
        seen.add(args[0], share, gram)

    return hook


def _keeping(outputs: list[Tensor]) -> Callable[..., None]:
    def hook(_: nn.Module, __: Any, output: Any) -> None:
        if isinstance(output, Tensor) and not outputs:
            outputs.append(output)

    return hook


@contextmanager
def _hooked(register: Callable[..., Any], hook: Callable[..., Any]) -> Iterator[None]:
    handle = register(hook)
    try:
        yield
    finally:
        handle.remove()


def stacks(model: nn.Module) -> list[tuple[str, Stack]]:
    """The stacks of blocks inside a model, in the order in which they run."""
    return [(name, part) for name, part in model.named_modules() if isinstance(part, Stack)]


def turns(model: nn.Module, batches: Sequence[Batch]) -> Iterator[Turn]:
    """The blocks of all stacks in order; what was done to one has its effect on the calls of the next.

    Raises UserError where there is no batch. Use it without gradients and with the model in evaluation mode.
    """
    if not batches:
        raise UserError("calibration needs some text: name a corpus or a text file that is not empty.")
    for name, stack in stacks(model):
        calls = [_arrival(model, stack, batch) for batch in batches]
        for number, block in enumerate(stack.blocks):
            turn = Turn(f"{name}.blocks.{number}", block, calls)
            yield turn
            calls = [((out, *args[1:]), kwargs) for out, (args, kwargs) in zip(turn.outputs(), calls, strict=True)]


def _arrival(model: nn.Module, stack: Stack, batch: Batch) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """How the model calls the stack's first block for a batch."""
    caught: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def stop(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        caught.append((args, kwargs))
        raise _Arrived

    handle = stack.blocks[0].register_forward_pre_hook(stop, with_kwargs=True)
    try:
        model(**batch) if isinstance(batch, Mapping) else model(batch)
    except _Arrived:
        return caught[0]
    finally:
        handle.remove()
    raise UserError("the model does not run all its blocks on the calibration's batches; give it all its inputs.")
