"""BitFit: only the biases learn (Ben Zaken et al. 2021, arXiv:2106.10199).

    y = (W x + b) + d,   d = 0 at first

PEFT has no format for it. The directory has PEFT's shape with `peft_type` BITFIT, and a tensor `<bias's name>_change`
of the checkpoint's shape for each bias: what is to be added to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..base.config import Settings
from ..base.errors import UserError
from . import _peft
from ._sites import Host, Place, Site
from ._wrapped import Base, Built, Part

MERGES, STARTS_AS_IDENTITY, PEFT_TYPE = True, True, "BITFIT"


class Config(Settings):
    """Which biases learn."""

    which: Literal["all", "linear", "norms"] = "all"
    """All of the stack's biases, or those of linear layers or of norms only."""


class Shift(Part):
    """What is added to one bias, d [out]."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.d = nn.Parameter(torch.zeros(count))

    def forward(self, base: Base, x: Tensor, *rest: Any) -> Tensor:
        """[..., in] -> [..., out]."""
        y = base(x, *rest)
        return y + self.d.to(y.dtype)

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        return None, None if bias is None else (bias + self.d).to(bias.dtype)


def _sites(host: Host, which: str) -> list[Site]:
    """Every bias of the stack as the checkpoint has it: several of ours may stand in one."""
    groups: dict[str, list[tuple[str, Any, int]]] = {}
    for name, stored in host.names.items():
        path, _, kind = name.rpartition(".")
        if kind != "bias" or stored.stack or {"head", "stem"} & set(path.split(".")):
            continue
        module = host.module(path)
        bias = getattr(module, "bias", None)
        if (
            bias is None
            or bias.dim() != 1
            or (which != "all" and hasattr(module, "in_features") != (which == "linear"))
        ):
            continue
        groups.setdefault(stored.name, []).append((path, stored, len(bias)))
    sites = []
    for stored_name, group in groups.items():
        total = sum(count for _, _, count in group)
        places = [
            Place(path, 0, count, how.cut.split(torch.arange(total))[how.part] if how.cut else None)
            for path, how, count in group
        ]
        sites.append(Site(stored_name, total, tuple(places)))
    return sites


def build(host: Host, config: Config, generator: torch.Generator) -> Built:
    """Zeros for every bias that is meant. Raises UserError where the model has none."""
    sites = _sites(host, config.which)
    if not sites:
        raise UserError("bitfit: this model has no such biases to train; use another kind, lora for instance.")
    parts: dict[str, Part] = {place.ours: Shift(place.outputs) for site in sites for place in site.places}
    return Built(host, parts, sites)


def tensors(built: Built) -> dict[str, Tensor]:
    """The changes under the checkpoint's names of the biases."""
    out = {}
    for site in built.sites:
        found: dict[str, Any] = {place.ours: built.parts[place.ours] for place in site.places}
        changes = {name: part.d for name, part in found.items()}
        out[f"{_peft.PREFIX}{site.stored}_change"] = site.put(changes, torch.zeros(site.total))
    return out


def fill(built: Built, shelf: _peft.Shelf) -> None:
    """Put a file's tensors into a fresh adapter. Raises UserError for a missing one or another shape."""
    for site in built.sites:
        change = shelf.take(f"{site.stored}_change", (site.total,))
        for place in site.places:
            part: Any = built.parts[place.ours]
            part.d.copy_(place.take(change))


def is_mine(told: Mapping[str, Any]) -> bool:
    """Whether an adapter_config.json is of this kind."""
    return told.get("peft_type") == PEFT_TYPE


def to_peft(host: Host, config: Config, built: Built) -> dict[str, Any]:
    """The settings, in the same shape as PEFT's."""
    return {"which": config.which}


READ = _peft.Fields(read=("which",))


def from_peft(told: Mapping[str, Any], shelf: _peft.Shelf, sites: list[Site]) -> dict[str, Any]:
    """Our settings from the directory's."""
    return {"which": told.get("which", "all")}
