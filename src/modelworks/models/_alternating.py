"""Layers that see a window and layers that see everything, taking turns: how a config.json tells of them."""

from __future__ import annotations

from typing import Any

from ..base.errors import UserError

SLIDING, FULL = "sliding_attention", "full_attention"


def layer_types(n_layers: int, every: int) -> list[str]:
    """Each `every`-th layer sees everything, the others a window."""
    return [SLIDING if (layer + 1) % every else FULL for layer in range(n_layers)]


def windows(n_layers: int, every: int, window: int) -> tuple[int, ...]:
    """The same as `nn.arithmetic` wants it: 0 where all is seen."""
    return tuple(window if kind == SLIDING else 0 for kind in layer_types(n_layers, every))


def every(settings: dict[str, Any], usual: int, family: str) -> int:
    """Which layers see everything, from a config; `usual` where it is silent. Raises UserError for another pattern."""
    kinds, n_layers = settings.get("layer_types"), settings.get("num_hidden_layers", 0)
    if kinds is None:
        return settings.get("sliding_window_pattern", usual)
    for step in (usual, *range(1, n_layers + 2)):
        if list(kinds) == layer_types(n_layers, step):
            settings.get("sliding_window_pattern")  # an older word for the same
            return step
    raise UserError(
        f"config.json: 'layer_types' is not layers with windows and after every so many one without, which is all "
        f"that our {family} does; this checkpoint cannot be opened exactly."
    )
