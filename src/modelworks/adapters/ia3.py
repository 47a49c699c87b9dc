"""IA3: a learned factor for each key, value and inner feed-forward activation (Liu et al. 2022, arXiv:2205.05638).

y = f * (W x + b)   at keys and values,      y = W (f * x) + b   before the feed-forward part's last matrix
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..base.config import Settings
from ..base.errors import UserError
from . import _peft
from ._sites import Host, Site, choose, ours, present
from ._wrapped import Base, Built, Part

MERGES, STARTS_AS_IDENTITY, PEFT_TYPE = True, True, "IA3"
USUAL = ("key", "value", "down")


class Config(Settings):
    """Which layers get factors, and which of them before rather than after."""

    targets: str | list[str] | None = None
    """Layers (none: key, value and down, as in the paper); names as for LoRA."""
    before: str | list[str] | None = None
    """Those of `targets` whose input is multiplied instead of their output (none: down)."""


class After(Part):
    """Factors for the outputs, f [out]."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.f = nn.Parameter(torch.ones(count))

    def forward(self, base: Base, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        y = base(x)
        return y * self.f.to(y.dtype)

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return (weight * self.f[:, None]).to(weight.dtype), None if bias is None else (bias * self.f).to(bias.dtype)


class Before(Part):
    """Factors for the inputs, f [in], one for all layers of the site."""

    changes_input = True

    def __init__(self, f: nn.Parameter) -> None:
        super().__init__()
        self.f = f

    def forward(self, base: Base, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        return base(x * self.f.to(x.dtype))

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return (weight * self.f).to(weight.dtype), None


def build(host: Host, config: Config, generator: torch.Generator) -> Built:
    """Fresh factors, all 1. Raises UserError for a target that is none."""
    sites = host.sites()
    targets = present(sites, USUAL) if config.targets is None else config.targets
    if not targets:
        raise UserError("targets: this model has no layer called key, value or down; name its layers.")
    chosen = choose(sites, targets)
    before = present(chosen, USUAL[2:]) if config.before is None else config.before
    turned = {site.stored for site in choose(chosen, before)} if before else set()
    parts: dict[str, Part] = {}
    for site in chosen:
        f = nn.Parameter(torch.ones(site.places[0].inputs))
        for place in site.places:
            parts[place.ours] = Before(f) if site.stored in turned else After(place.outputs)
    return Built(host, parts, chosen)


def _before(built: Built, site: Site) -> bool:
    return isinstance(built.parts[site.places[0].ours], Before)


def tensors(built: Built) -> dict[str, Tensor]:
    """The adapter under PEFT's names: [1, in] before, [out, 1] after."""
    out: dict[str, Tensor] = {}
    for site in built.sites:
        found: dict[str, Any] = {place.ours: built.parts[place.ours] for place in site.places}
        if _before(built, site):
            factors = found[site.places[0].ours].f[None]
        else:
            factors = site.put({name: part.f for name, part in found.items()}, torch.ones(site.total))[:, None]
        out[f"{_peft.PREFIX}{site.stored}.ia3_l"] = factors
    return out


def fill(built: Built, shelf: _peft.Shelf) -> None:
    """Put a file's tensors into a fresh adapter. Raises UserError for a missing one or another shape."""
    for site in built.sites:
        parts: dict[str, Any] = {place.ours: built.parts[place.ours] for place in site.places}
        name = f"{site.stored}.ia3_l"
        if _before(built, site):
            parts[site.places[0].ours].f.copy_(shelf.take(name, (1, site.places[0].inputs))[0])
            continue
        factors = shelf.take(name, (site.total, 1))[:, 0]
        for place in site.places:
            parts[place.ours].f.copy_(place.take(factors))


def is_mine(told: Mapping[str, Any]) -> bool:
    """Whether an adapter_config.json is of this kind."""
    return told.get("peft_type") == PEFT_TYPE


def to_peft(host: Host, config: Config, built: Built) -> dict[str, Any]:
    """The settings as PEFT names them."""
    turned = [site for site in built.sites if _before(built, site)]
    names = [site.stored for site in built.sites]
    short = _peft.target_modules(host, turned) if turned else []
    known = _peft.target_modules(host, built.sites)
    if not set(short) <= set(known):  # PEFT wants the one list inside the other
        known, short = sorted(names), sorted(site.stored for site in turned)
    return {
        "target_modules": known,
        "feedforward_modules": short,
        "fan_in_fan_out": _peft.transposed(host, built.sites),
        "init_ia3_weights": True,
        "modules_to_save": None,
    }


READ = _peft.Fields(
    only={"modules_to_save": (None, [])},
    neutral=("target_modules", "feedforward_modules", "exclude_modules", "fan_in_fan_out", "init_ia3_weights"),
)


def from_peft(told: Mapping[str, Any], shelf: _peft.Shelf, sites: list[Site]) -> dict[str, Any]:
    """Our settings from PEFT's; which layers, and which of them before, is said by the tensors that are there."""
    factors = {site.stored: shelf.peek(f"{site.stored}.ia3_l") for site in sites}
    before = [site for site in sites if (found := factors[site.stored]) is not None and len(found) == 1]
    return {"targets": ours(sites), "before": ours(before)}
