"""How a family's tensors are called and laid out in a Hugging Face file, and how its settings are read there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..base.errors import UserError


@dataclass(frozen=True, slots=True)
class Stored:
    """Where one of our tensors stands on disk: a name; perhaps transposed; perhaps one of `of` parts of a row.

    GPT-2 keeps [in, out] matrices (`transpose`) and query, key and value side by side in one (`part`, `of`).
    """

    name: str
    transpose: bool = False
    part: int = 0
    of: int = 1


def per_layer(patterns: dict[str, Stored], n_layers: int) -> dict[str, Stored]:
    """Write out patterns with a `{}` for the layer's number: {'blocks.{}.x': ...} -> {'blocks.0.x': ...}."""
    out = {}
    for ours, stored in patterns.items():
        for layer in range(n_layers) if "{}" in ours else (0,):
            name = stored.name.format(layer)
            out[ours.format(layer)] = Stored(name, stored.transpose, stored.part, stored.of)
    return out


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


def missing(settings: dict[str, Any], keys: tuple[str, ...]) -> None:
    """Raises UserError naming the first of `keys` that a Hugging Face config lacks."""
    for key in keys:
        if key not in settings:
            raise UserError(f"config.json: '{key}' is not there; the file is not a complete model config.")
