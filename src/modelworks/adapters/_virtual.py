"""Virtual tokens: keys and values that every token sees before its own text, though no token made them in this pass.

    attention's mixer, called with the keys and values of the text, is called with those of the prefix before them:

        virtual      text            A token of the text sees all virtual ones (the nearest, where attention has a
      [ p p p p | t t t t t ]        window); positions of the text begin after them. Documents packed in one row
                                     each have the prefix before them.

The KV cache holds the text alone, so rows of one batch may have different prefixes, or none. P virtual tokens, B rows,
K key heads, D head width, L layers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..base.errors import UserError
from ..nn.attention import Attention
from ..nn.cache import KVCache
from ..nn.layout import Layout
from ..nn.stems import Tokens
from ..nn.transformer import Transformer
from ._sites import Host, Wrapper
from ._wrapped import Switch

KeysValues = tuple[list[Tensor], list[Tensor]]
"""A layer each: [1, K, P, D]."""


class Source(Protocol):
    """An adapter that has virtual tokens."""

    count: int

    def keys_values(self, model: Transformer) -> KeysValues: ...


@dataclass(slots=True)
class Prefix:
    """The virtual tokens of one pass: keys and values [B or 1, K, P, D] a layer, and which rows have how many."""

    keys: list[Tensor]
    values: list[Tensor]
    lengths: Tensor | None
    """int64 [B], where rows differ: they stand at the end of the P columns."""

    @property
    def count(self) -> int:
        """P."""
        return int(self.keys[0].shape[2])


KEY = "virtual tokens"
"""Under which a pass remembers its prefix."""


class Virtual:
    """What turns the switch's names into a pass's `Prefix`."""

    def __init__(self, switch: Switch, sources: Callable[[str | None], Source | None]) -> None:
        self.switch, self.sources = switch, sources

    def of(self, model: Transformer, layout: Layout) -> Prefix | None:
        """This pass's, worked out once."""
        return layout.once(KEY, lambda: self._make(model))  # type: ignore[no-any-return]

    def _make(self, model: Transformer) -> Prefix | None:
        rows = self.switch.rows
        if rows is None:
            source = self.sources(self.switch.active)
            return None if source is None else Prefix(*source.keys_values(model), None)
        found = {name: source for name in set(rows) if (source := self.sources(name)) is not None}
        if not found:
            return None
        with self.switch.only(None):  # a prompt is run by itself, through the base
            made = {name: source.keys_values(model) for name, source in found.items()}
        widest = max(source.count for source in found.values())
        first = next(iter(made.values()))[0][0]
        blank = first.new_zeros(1, first.shape[1], widest, first.shape[3])

        def column(which: int, layer: int) -> Tensor:
            padded = {
                name: torch.cat((blank[:, :, found[name].count :], pair[which][layer]), 2)
                for name, pair in made.items()
            }
            return torch.cat([padded.get(name, blank) for name in rows])

        layers = range(len(next(iter(made.values()))[0]))
        lengths = torch.tensor([found[name].count if name in found else 0 for name in rows], device=first.device)
        return Prefix([column(0, n) for n in layers], [column(1, n) for n in layers], lengths)


class Sighted(nn.Module):
    """A mask with columns for the virtual tokens before its own."""

    causal, fixed = False, False  # it fits no square of queries and keys any more

    def __init__(self, mask: Any, prefix: Prefix) -> None:
        super().__init__()
        self.mask = (mask,)
        self.prefix = prefix

    def forward(self, layout: Layout, dtype: torch.dtype) -> tuple[Tensor | None, bool]:
        """The additive mask [.., T, P + S], or None where all is seen."""
        return layout.once((self.mask[0], dtype, "virtual"), lambda: self._seen(layout, dtype))  # type: ignore[no-any-return]

    def _seen(self, layout: Layout, dtype: torch.dtype) -> tuple[Tensor | None, bool]:
        mask, prefix = self.mask[0], self.prefix
        seen, is_causal = mask(layout, dtype)
        if is_causal:
            seen = mask.square(layout, dtype)
        hidden = self._hidden(layout)
        if seen is None and hidden is None:
            return None, False
        past = layout.cache.longest if layout.cache is not None else 0
        if seen is None:
            seen = torch.zeros(layout.seq, past + layout.seq, dtype=dtype, device=layout.device)
        shape = torch.broadcast_shapes((*seen.shape[:-1], prefix.count), () if hidden is None else hidden.shape)
        columns = torch.zeros(shape, dtype=dtype, device=layout.device)
        if hidden is not None:
            columns = columns.masked_fill(hidden, float("-inf"))
        seen = seen.expand(*shape[:-1], seen.shape[-1])
        return torch.cat((columns, seen), -1), False

    def _hidden(self, layout: Layout) -> Tensor | None:
        """bool [B, 1, T or 1, P], where a virtual token is not seen; None where all are."""
        index = torch.arange(self.prefix.count, device=layout.device)
        hidden = None
        if self.prefix.lengths is not None:
            hidden = (index < self.prefix.count - self.prefix.lengths[:, None])[:, None, None]
        window = getattr(self.mask[0], "window", None)
        if window is not None:
            shift = self.prefix.count if self.prefix.lengths is None else self.prefix.lengths[:, None]
            place = layout.positions - shift  # in its own document
            far = (place[:, None, :, None] + self.prefix.count - index) >= window
            hidden = far if hidden is None else hidden | far
        return hidden


class Prefixed(Wrapper):
    """An attention's mixer that sees the virtual tokens too."""

    def __init__(self, base: nn.Module, model: Transformer, virtual: Virtual, layer: int) -> None:
        super().__init__()
        self.base, self.model, self.virtual, self.layer = base, (model,), virtual, layer

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor, mask: nn.Module, layout: Layout) -> Tensor:
        """As the mixer's."""
        prefix = self.virtual.of(self.model[0], layout)
        if prefix is None:
            return self.base(queries, keys, values, mask, layout)  # type: ignore[no-any-return]
        before = [
            side[self.layer].to(keys.dtype).expand(len(keys), -1, -1, -1) for side in (prefix.keys, prefix.values)
        ]
        keys, values = torch.cat((before[0], keys), 2), torch.cat((before[1], values), 2)
        return self.base(queries, keys, values, Sighted(mask, prefix), layout)  # type: ignore[no-any-return]


def check(host: Host) -> tuple[Transformer, list[Attention]]:
    """The model and its attention layers, in order. Raises UserError where virtual tokens have no place."""
    model = host.model
    layers = [module for _, module in host.modules() if isinstance(module, Attention)]
    fits = isinstance(model, Transformer) and isinstance(model.stem, Tokens) and len(layers) == len(model.stack.blocks)
    if not fits or not all(layer.mask.causal for layer in layers):
        raise UserError(
            f"virtual tokens (prefix, prompt) are for decoders only, and this {host.family} is none; "
            "use another kind, lora for instance."
        )
    assert isinstance(model, Transformer)
    return model, sorted(layers, key=lambda layer: layer.layer)


def run_alone(model: Transformer, words: Tensor) -> KeysValues:
    """What each layer keeps of the embeddings `words` [P, D] at positions 0 .. P - 1, seen by nobody else.

    A causal model's first tokens see only each other, so this is what they would be in front of any text.
    """
    stem, shape = model.stem, next(module for module in model.modules() if isinstance(module, Attention))
    words = words.to(stem.tokens.weight.dtype)
    cache = KVCache(len(model.stack.blocks), 1, shape.n_kv_heads, len(words), shape.d_head, words.dtype, words.device)
    ids = torch.arange(len(words), device=words.device)[None]
    layout = Layout(ids, cache=cache)
    layout.once(KEY, lambda: None)
    table = {"tokens.weight": words if stem.scale == 1.0 else words / stem.scale}
    model.stack(torch.func.functional_call(stem, table, (ids, layout)), layout)
    return cache.keys, cache.values
