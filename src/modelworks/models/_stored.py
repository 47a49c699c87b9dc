"""How a family's tensors are called and laid out in a Hugging Face file, and how its settings are read there."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from ..base.errors import UserError

CLASSIFIERS = ("classes", "tokens", "distilled")
"""Heads whose size is a number of labels."""


class Cut(Protocol):
    """How several tensors of ours share a stored one; `join` undoes `split`."""

    def split(self, tensor: Tensor) -> list[Tensor]: ...

    def join(self, parts: list[Tensor]) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class Equal:
    """`count` equal parts one after another along `axis` (GPT-2's c_attn, ModernBERT's Wqkv)."""

    count: int
    axis: int

    def split(self, tensor: Tensor) -> list[Tensor]:
        return list(tensor.chunk(self.count, self.axis))

    def join(self, parts: list[Tensor]) -> Tensor:
        return torch.cat(parts, self.axis)


@dataclass(frozen=True, slots=True)
class Sizes:
    """Parts of the given sizes one after another along `axis` (Phi-3's qkv_proj)."""

    sizes: tuple[int, ...]
    axis: int

    def split(self, tensor: Tensor) -> list[Tensor]:
        return list(tensor.split(self.sizes, self.axis))

    def join(self, parts: list[Tensor]) -> Tensor:
        return torch.cat(parts, self.axis)


@dataclass(frozen=True, slots=True)
class PerHead:
    """`count` parts side by side within each of `n_heads` heads along the first axis (GPT-NeoX's query_key_value)."""

    n_heads: int
    count: int

    def split(self, tensor: Tensor) -> list[Tensor]:
        heads = tensor.unflatten(0, (self.n_heads, self.count, -1))
        return [part.flatten(0, 1) for part in heads.unbind(1)]

    def join(self, parts: list[Tensor]) -> Tensor:
        return torch.stack([part.unflatten(0, (self.n_heads, -1)) for part in parts], 1).flatten(0, 2)


@dataclass(frozen=True, slots=True)
class Stored:
    """Where one of our tensors stands on disk.

    `name`; perhaps with its last two axes transposed (GPT-2 keeps [in, out]); perhaps `part` number so-and-so of
    what `cut` makes of the stored tensor; or (`stack` > 0) ours is the stack of as many stored tensors, whose
    names are `name.format(0)` and so on (experts).
    """

    name: str
    transpose: bool = False
    part: int = 0
    cut: Cut | None = None
    stack: int = 0

    def moved(self, prefix: str) -> Stored:
        """The same under a longer name."""
        return replace(self, name=prefix + self.name)

    def names(self) -> list[str]:
        """The stored tensors that ours is made of."""
        return [self.name.format(number) for number in range(self.stack)] if self.stack else [self.name]


def per_layer(patterns: dict[str, Stored], n_layers: int) -> dict[str, Stored]:
    """Write out patterns with a `{}` for the layer's number: {'blocks.{}.x': ...} -> {'blocks.0.x': ...}.

    What is left for the number of an expert is written `{{}}`.
    """
    out = {}
    for ours, stored in patterns.items():
        for layer in range(n_layers) if "{}" in ours else (0,):
            name = stored.name.format(layer) if "{}" in ours else stored.name
            out[ours.format(layer)] = replace(stored, name=name)
    return out


def with_bias(names: dict[str, str]) -> dict[str, Stored]:
    """{'attention.out': 'o_proj'} -> both its weight and its bias."""
    return {
        f"{ours}.{kind}": Stored(f"{theirs}.{kind}") for ours, theirs in names.items() for kind in ("weight", "bias")
    }


def unprefixed(names: dict[str, Stored], prefix: str) -> dict[str, Stored]:
    """The same places as a model without a head names them."""
    return {ours: replace(stored, name=stored.name.removeprefix(prefix)) for ours, stored in names.items()}


def need(settings: dict[str, Any], family: str, allowed: dict[str, tuple[Any, ...]]) -> None:
    """Refuse a Hugging Face config whose value would change the maths in a way this family does not do.

    A key that is absent counts as the first allowed value. Raises UserError.
    """
    for key, values in allowed.items():
        if settings.get(key, values[0]) not in values:
            raise UserError(
                f"config.json: '{key}' is {settings[key]!r}, and our {family} only does {values[0]!r}; "
                "this checkpoint cannot be opened exactly."
            )


def missing(settings: dict[str, Any], keys: Iterable[str]) -> None:
    """Raises UserError naming the first of `keys` that a Hugging Face config lacks."""
    for key in keys:
        if key not in settings:
            raise UserError(f"config.json: '{key}' is not there; the file is not a complete model config.")


def idle(settings: dict[str, Any], *keys: str) -> None:
    """Say that this family knows these settings of a config and that they change no number here.

    `hub.settings` refuses what nobody has read, lest a setting be overlooked that changes the maths.
    """
    for key in keys:
        settings.get(key)


def unwindowed(settings: dict[str, Any], family: str) -> None:
    """Refuse a config with windows; what describes windows is idle while they are off. Raises UserError."""
    need(settings, family, {"use_sliding_window": (False, None)})
    idle(settings, "sliding_window", "max_window_layers")
    kinds = settings.get("layer_types") or []
    need({"layer_types": next((kind for kind in kinds if kind != "full_attention"), "full_attention")}, family,
         {"layer_types": ("full_attention",)})  # fmt: skip


def head_of(settings: dict[str, Any], architectures: dict[str, str]) -> str:
    """Our name of the head that a config's architecture has; the family's usual one where it names none."""
    name = next(iter(settings.get("architectures") or []), None)
    return architectures.get(name or "", next(iter(architectures.values())))


def labels(config: Any) -> dict[str, Any]:
    """What a config.json says of a classifier's classes; nothing where the head is another."""
    if config.head not in CLASSIFIERS:
        return {}
    return {"num_labels": config.n_labels, "id2label": {str(i): f"LABEL_{i}" for i in range(config.n_labels)}}


def n_labels(settings: dict[str, Any]) -> int:
    """How many classes a config.json has."""
    return len(settings["id2label"]) if settings.get("id2label") else settings.get("num_labels", 2)


def rope(settings: dict[str, Any]) -> dict[str, Any]:
    """What a config says of rotary positions, in either spelling: always has 'rope_type' and 'rope_theta'.

    The older spelling (`rope_scaling`, with `rope_theta` beside it) wins where both are given, as in `transformers`:
    it is what users add by hand to stretch a model.
    """
    new = settings.get("rope_parameters") or {}
    found = dict(settings.get("rope_scaling") or new)
    kind = found.pop("type", "default")
    theta = settings.get("rope_theta", new.get("rope_theta", 10_000.0))
    return {"rope_type": kind, "rope_theta": theta} | found


def chosen(table: dict[str, Callable[..., Any]], name: str, key: str, family: str) -> Callable[..., Any]:
    """The part that a config asks for by name (an activation, say). Raises UserError when we do not have it."""
    if name not in table:
        raise UserError(
            f"config.json: '{key}' is {name!r}, and our {family} does {', '.join(sorted(table))}; "
            "this checkpoint cannot be opened exactly."
        )
    return table[name]
