"""Looking into a built model and writing into it, from outside: named points, no cost where nobody looks.

    embeddings -> blocks.0.input -> blocks.0.attention.{queries, keys, values, mixed} -> blocks.0.attention
               -> blocks.0.feedforward -> blocks.0.output -> blocks.1.input ... -> final

`blocks.N.cross` (with the same four) stands between them where a block reads a memory; a model of several
transformers names them first (`encoder.blocks.0.input`). B batch, T time, S keys, H query heads, K key heads.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..base.errors import UserError, nearest
from .transformer import Transformer

Change = Callable[[Tensor], Tensor | None]
"""What is done with the tensor that passes a point; None leaves it."""


@dataclass(frozen=True, slots=True)
class _Point:
    """Argument number `argument` of a part's call, or what it returns (None); only while `owner` is running.

    One mixer may serve many layers; `owner` is the attention of the layer that is meant.
    """

    part: nn.Module
    argument: int | None = None
    owner: nn.Module | None = None


def points(model: nn.Module) -> list[str]:
    """The names of all points: of each transformer in the model, in the order of its pass."""
    return list(_map(model))


@contextlib.contextmanager
def capture(
    model: nn.Module, names: Iterable[str] | None = None, *, gradients: bool = False
) -> Iterator[dict[str, Tensor]]:
    """Within the block, `seen[name]` is what last passed that point; all points where `names` is None.

    A point that the pass does not reach is not there. Residual stream, attention and feed-forward are [B, T, D];
    queries and mixed [B, H, T, d]; keys and values [B, K, S, d], after norms and rotation. They are detached,
    unless `gradients` are wanted: then they are part of the graph, and after `backward` `seen[name].grad` is the
    slope there. Raises UserError for a name that the model has not.
    """
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Change:
        def change(x: Tensor) -> Tensor | None:
            if not gradients:
                seen[name] = x.detach()
                return None
            seen[name] = x if x.requires_grad else x.detach().requires_grad_()
            seen[name].retain_grad()
            return seen[name]

        return change

    with _hooked(model, {name: keep(name) for name in (points(model) if names is None else names)}):
        yield seen


@contextlib.contextmanager
def replace(model: nn.Module, changes: Mapping[str, Callable[[Tensor], Tensor]]) -> Iterator[None]:
    """Within the block, what passes a point is replaced by what its function makes of it (patching, ablation).

    A new key or value is used in this pass and not kept in a cache. A `capture` begun inside sees what was put
    in place. Raises UserError for a name that the model has not, or a result of another shape or dtype.
    """

    def checked(name: str, make: Callable[[Tensor], Tensor]) -> Change:
        def change(x: Tensor) -> Tensor:
            new = make(x)
            if not isinstance(new, Tensor) or (new.shape, new.dtype) != (x.shape, x.dtype):
                raise UserError(f"{name}: the replacement must be a tensor of shape {list(x.shape)} and {x.dtype}.")
            return new

        return change

    with _hooked(model, {name: checked(name, make) for name, make in changes.items()}):
        yield


def attention_weights(
    model: nn.Module, *inputs: Any, layers: Iterable[int] | None = None, **named: Any
) -> dict[str, Tensor]:
    """Who attends to whom: `{"blocks.3.attention": float32 [B, H, T, S], ...}`, of the given `layers` or of all.

    Runs `model(*inputs, **named)` once. The shares are what each layer's own mixer does to the identity in the
    place of the values, so caps, biases, windows and sinks are in them; dropout is not.
    """
    wanted = None if layers is None else set(layers)
    found: dict[str, Tensor] = {}
    with contextlib.ExitStack() as stack:
        for prefix, transformer in _transformers(model):
            for number, block in enumerate(transformer.stack.blocks):
                if wanted is not None and number not in wanted:
                    continue
                for kind in ("attention", "cross"):
                    part = getattr(block, kind, None)
                    if part is not None and hasattr(part, "mixer"):
                        stack.enter_context(_watched(part, f"{prefix}blocks.{number}.{kind}", found))
        with torch.no_grad():
            model(*inputs, **named)
    return found


@contextlib.contextmanager
def _watched(attention: nn.Module, name: str, found: dict[str, Tensor]) -> Iterator[None]:
    running = _Running(attention)

    def look(mixer: nn.Module, arguments: tuple[Any, ...], mixed: Tensor) -> None:
        if running.now:
            found[name] = _shares(mixer, *arguments)

    handles = [*running.handles, attention.mixer.register_forward_hook(look)]  # type: ignore[union-attr,operator]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _shares(mixer: nn.Module, queries: Tensor, keys: Tensor, values: Tensor, mask: Any, layout: Any) -> Tensor:
    """The mixer's result for values that are columns of the identity, as many at a time as a head is wide."""
    queries, keys = queries.float(), keys.float()
    n_keys, width = keys.shape[2], values.shape[3]
    columns = torch.eye(n_keys, -(-n_keys // width) * width, device=keys.device)
    training = mixer.training
    mixer.eval()
    try:
        pieces = [
            mixer.forward(queries, keys, piece.expand(*keys.shape[:3], width).contiguous(), mask, layout)
            for piece in columns.split(width, 1)
        ]
    finally:
        mixer.train(training)
    return torch.cat(pieces, 3)[..., :n_keys]


class _Running:
    """Whether a part is in the middle of its forward pass."""

    def __init__(self, part: nn.Module) -> None:
        self.now = False
        self.handles = [
            part.register_forward_pre_hook(lambda *_: self._set(True)),
            part.register_forward_hook(lambda *_: self._set(False), always_call=True),
        ]

    def _set(self, now: bool) -> None:
        self.now = now


@contextlib.contextmanager
def _hooked(model: nn.Module, changes: Mapping[str, Change]) -> Iterator[None]:
    known = _map(model)
    for name in changes:
        if name not in known:
            raise UserError(f"'{name}' is no point of this model{nearest(name, list(known))}.")
    handles: list[RemovableHandle] = []
    try:
        for name, change in changes.items():
            handles += _hooks(known[name], change)
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hooks(point: _Point, change: Change) -> list[RemovableHandle]:
    running = None if point.owner is None else _Running(point.owner)

    def returned(part: nn.Module, arguments: tuple[Any, ...], result: Tensor) -> Tensor | None:
        return change(result) if running is None or running.now else None

    def given(part: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
        at = point.argument
        assert at is not None
        new = change(arguments[at]) if running is None or running.now else None
        return None if new is None else (*arguments[:at], new, *arguments[at + 1 :])

    own = [] if running is None else running.handles
    if point.argument is None:
        return [*own, point.part.register_forward_hook(returned)]
    return [*own, point.part.register_forward_pre_hook(given)]


def _transformers(model: nn.Module) -> list[tuple[str, Transformer]]:
    """(prefix, transformer) for each transformer in the model, in the order that they were put in."""
    return [(f"{path}." if path else "", part) for path, part in model.named_modules() if isinstance(part, Transformer)]


def _map(model: nn.Module) -> dict[str, _Point]:
    found: dict[str, _Point] = {}
    for prefix, transformer in _transformers(model):
        found[f"{prefix}embeddings"] = _Point(transformer.stem)
        for number, block in enumerate(transformer.stack.blocks):
            here = f"{prefix}blocks.{number}."
            found[f"{here}input"] = _Point(block, 0)
            for kind in ("attention", "cross", "feedforward"):
                if isinstance(part := getattr(block, kind, None), nn.Module):
                    found |= _within(f"{here}{kind}", part)
            found[f"{here}output"] = _Point(block)
        found[f"{prefix}final"] = _Point(transformer.stack)
    return found


def _within(name: str, part: nn.Module) -> dict[str, _Point]:
    """A part of a block: what it returns and, where it attends, its heads on the way."""
    found = {}
    if isinstance(mixer := getattr(part, "mixer", None), nn.Module):
        for argument, heads in enumerate(("queries", "keys", "values")):
            found[f"{name}.{heads}"] = _Point(mixer, argument, part)
        found[f"{name}.mixed"] = _Point(mixer, None, part)
    return found | {name: _Point(part)}
