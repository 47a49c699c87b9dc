"""What can be done to the blocks of a built model from outside: compiling them, working them out again to save memory.

A block is a member of the outermost list of like modules, whatever the family calls it. Compiling one compiles all of
them, since they share their code, and takes a fraction of the time that a whole model takes.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

from torch import nn


def blocks(model: nn.Module) -> Iterator[nn.Module]:
    """The blocks of each stack in the model, in order; modules inside a block are not looked at."""
    for module in model.children():
        if isinstance(module, nn.ModuleList) and len({type(member) for member in module}) == 1:
            yield from module
        else:
            yield from blocks(module)


def compiled(model: nn.Module, on: bool) -> None:
    """Let `torch.compile` make the blocks' code at their next call, or go back to what they were.

    On a processor through generated C++ calls, which is what a small model gains most from. The made code is kept by
    torch in its own cache, so that the next run starts at once.
    """
    for block in blocks(model):
        if on:
            options = {"cpp_wrapper": True} if next(block.parameters()).device.type == "cpu" else {}
            block.compile(dynamic=False, options=options)
        else:
            block._compiled_call_impl = None


def recomputed(model: nn.Module) -> None:
    """Keep only what goes into each block, and work the rest out again in the backward pass (Chen et al. 2016).

    A third more time for a fraction of the activations' memory; values, gradients and dropout's draws stay the same.
    """
    from torch.utils.checkpoint import checkpoint

    for block in blocks(model):
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)  # type: ignore[method-assign]
