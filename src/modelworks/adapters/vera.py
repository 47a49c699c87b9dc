"""VeRA: one pair of random matrices for all layers, of which only the scales are learned (Kopiczko et al. 2023).

y = W x + b + v * (B (d * (A x))),   A [rank, widest in], B [widest out, rank] drawn once, v = 0 at first

Paper: arXiv:2310.11454.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ..base.config import Settings
from . import _peft
from ._sites import ALL, Host, Site, choose, ours
from ._wrapped import Base, Built, Part

MERGES, STARTS_AS_IDENTITY, PEFT_TYPE = True, True, "VERA"


class Config(Settings):
    """How large the shared matrices are and for which layers."""

    rank: int = Field(256, ge=1)
    """Rows of A; may be large, only a number for each is learned."""
    targets: str | list[str] = ALL
    """Layers: all-linear, a list of names or their ends (query, q_proj, c_attn ...), or a regular expression."""
    start: float = 0.1
    """What each of d is at first."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Share of the input that is dropped before A, in training only."""
    projection_seed: int = 0
    """Draws the shared matrices: the same seed always gives the same."""


class Projections(nn.Module):
    """The shared matrices, never trained: A [rank, in], B [out, rank] of the widest layer."""

    A: Tensor
    B: Tensor

    def __init__(self, rank: int, inputs: int, outputs: int, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        for name, shape in (("A", (rank, inputs)), ("B", (outputs, rank))):
            bound = math.sqrt(6 / shape[1])  # He et al. 2015, uniform
            self.register_buffer(name, torch.empty(shape).uniform_(-bound, bound, generator=generator))


class Vera(Part):
    """One layer's share: d [rank] (one for the site) and v [out]."""

    rows: Tensor

    def __init__(
        self, shared: Projections, d: nn.Parameter, v: nn.Parameter, inputs: int, rows: Tensor, dropout: float
    ):
        super().__init__()
        self.shared = (shared,)  # in a tuple, so that it is not this part's child
        self.d, self.v, self.inputs, self.dropout = d, v, inputs, dropout
        self.register_buffer("rows", rows, persistent=False)

    def forward(self, base: Base, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        down, up = self._matrices()
        dropped = F.dropout(x, self.dropout) if self.dropout and self.training else x
        # the small matrices are scaled, not what comes out of them: no copy as large as y is kept
        added = F.linear(F.linear(dropped, down.to(x.dtype)), up.to(x.dtype))
        y = base(x)
        return y + added.to(y.dtype)

    def _matrices(self) -> tuple[Tensor, Tensor]:
        """d A [rank, in] and v B [out, rank]."""
        shared = self.shared[0]
        return self.d[:, None] * shared.A[:, : self.inputs], self.v[:, None] * shared.B[self.rows]

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        down, up = self._matrices()
        return (weight.float() + up @ down).to(weight.dtype), None


def build(host: Host, config: Config, generator: torch.Generator) -> Built:
    """Fresh scales for every layer that is meant. Raises UserError for a target that is none."""
    chosen = choose(host.sites(), config.targets)
    inputs = max(site.places[0].inputs for site in chosen)
    outputs = max(site.total for site in chosen)
    shared = Projections(config.rank, inputs, outputs, config.projection_seed)
    parts: dict[str, Part] = {}
    for site in chosen:
        d = nn.Parameter(torch.full((config.rank,), config.start))
        for place in site.places:
            rows = torch.arange(site.total) if place.rows is None else place.rows
            v = nn.Parameter(torch.zeros(place.outputs))
            parts[place.ours] = Vera(shared, d, v, place.inputs, rows, config.dropout)
    return Built(host, parts, chosen, shared)


def tensors(built: Built) -> dict[str, Tensor]:
    """The adapter under PEFT's names, the shared matrices with it."""
    shared: Any = built.shared
    out = {"base_model.vera_A": shared.A, "base_model.vera_B": shared.B}
    for site in built.sites:
        found: dict[str, Any] = {place.ours: built.parts[place.ours] for place in site.places}
        stored = f"{_peft.PREFIX}{site.stored}"
        out[f"{stored}.vera_lambda_d"] = found[site.places[0].ours].d
        out[f"{stored}.vera_lambda_b"] = site.put({name: p.v for name, p in found.items()}, torch.zeros(site.total))
    return out


def fill(built: Built, shelf: _peft.Shelf) -> None:
    """Put a file's tensors into a fresh adapter. Raises UserError for a missing one or another shape."""
    shared: Any = built.shared
    for name in ("A", "B"):
        if shelf.peek(f"base_model.vera_{name}") is not None:  # left out where it can be drawn again
            getattr(shared, name).copy_(shelf.take(f"base_model.vera_{name}", getattr(shared, name).shape))
    for site in built.sites:
        parts: dict[str, Any] = {place.ours: built.parts[place.ours] for place in site.places}
        d = parts[site.places[0].ours].d
        d.copy_(shelf.take(f"{site.stored}.vera_lambda_d", d.shape))
        v = shelf.take(f"{site.stored}.vera_lambda_b", (site.total,))
        for place in site.places:
            parts[place.ours].v.copy_(place.take(v))


def is_mine(told: Mapping[str, Any]) -> bool:
    """Whether an adapter_config.json is of this kind."""
    return told.get("peft_type") == PEFT_TYPE


def to_peft(host: Host, config: Config, built: Built) -> dict[str, Any]:
    """The settings as PEFT names them."""
    return {
        "r": config.rank,
        "target_modules": _peft.target_modules(host, built.sites),
        "projection_prng_key": config.projection_seed,
        "save_projection": True,
        "vera_dropout": config.dropout,
        "d_initial": config.start,
        "fan_in_fan_out": _peft.transposed(host, built.sites),
        "bias": "none",
        "init_weights": True,
        "modules_to_save": None,
    }


READ = _peft.Fields(
    read=("r", "vera_dropout", "d_initial", "projection_prng_key"),
    only={"bias": ("none",), "modules_to_save": (None, [])},
    neutral=(
        "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "fan_in_fan_out",
        "save_projection", "init_weights",
    ),
)  # fmt: skip


def from_peft(told: Mapping[str, Any], shelf: _peft.Shelf, sites: list[Site]) -> dict[str, Any]:
    """Our settings from PEFT's; which layers is said by the tensors that are there."""
    return {
        "rank": told.get("r", 256),
        "targets": ours(sites),
        "start": told.get("d_initial", 0.1),
        "dropout": told.get("vera_dropout", 0.0),
        "projection_seed": told.get("projection_prng_key", 0),
    }
