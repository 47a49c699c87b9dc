"""DoRA: LoRA that learns the length of each row of the weight apart from its direction (Liu et al. 2024).

    y = g (W x + s B A x) + b,   g = m / |W + s B A| row by row,   m = |W| at first      (arXiv:2402.09353)

The lengths |W + s B A| are taken as constants when gradients are worked out (section 4.3 of the paper). They come from
|W|^2 + 2 s <W A', B> + s^2 <B A A', B>, so the sum of the matrices never exists, and W need not be readable: W A' is
what the layer says of the rows of A.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from . import _peft, lora
from ._sites import Host, choose
from ._wrapped import Base, Built, Part

MERGES, STARTS_AS_IDENTITY, PEFT_TYPE = True, True, "LORA"
ROWS = 256
"""Inputs that a layer without a readable weight is asked about at a time."""


class Config(lora.Config):
    """The same as LoRA's."""


class Dora(lora.Lora):
    """One layer's share: LoRA's A and B, and the lengths m [out]."""

    squares: Tensor

    def __init__(self, down: nn.Parameter, up: nn.Parameter, scale: float, dropout: float, layer: nn.Module) -> None:
        super().__init__(down, up, scale, dropout)
        self.layer = (layer,)  # in a tuple, so that it is not this part's child
        self.register_buffer("squares", squares(layer), persistent=False)
        self.m = nn.Parameter(self.squares.sqrt())

    def forward(self, base: Base, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        y = base(flat)
        down, up = self.change(flat, y.dtype)
        gain = (self.m / self.lengths()).to(y.dtype)
        bias = getattr(self.layer[0], "bias", None)
        if bias is None:
            y = torch.addmm(y, down, up) * gain
        else:  # written so that a gain of 1 leaves y as it is, to the last bit
            y = y + (gain - 1) * (y - bias.to(y.dtype)) + gain * (down @ up)
        return y.view(*x.shape[:-1], y.shape[-1])

    @torch.no_grad()
    def lengths(self) -> Tensor:
        """|W + s B A| row by row, float32 [out]."""
        down, up = self.A.float(), self.B.float()
        across = answers(self.layer[0], down)
        total = self.squares + self.scale * ((2 * across + self.scale * (up @ (down @ down.t()))) * up).sum(1)
        return total.clamp_min(0).sqrt()

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        whole = weight.float() + self.product()
        return (whole * (self.m / whole.norm(dim=1))[:, None]).to(weight.dtype), None


@torch.no_grad()
def answers(layer: nn.Module, inputs: Tensor) -> Tensor:
    """W x' for each row x of `inputs` [n, in], without the bias: float32 [out, n]."""
    weight = getattr(layer, "weight", None)
    if isinstance(weight, nn.Parameter) and weight.is_floating_point():
        return weight.float() @ inputs.t()
    got = layer(inputs)
    bias = getattr(layer, "bias", None)
    return (got if bias is None else got - bias).float().t()


def device_of(layer: nn.Module) -> torch.device:
    """Where a layer's tensors are."""
    return next((tensor.device for tensor in layer.state_dict().values()), torch.device("cpu"))


@torch.no_grad()
def squares(layer: nn.Module) -> Tensor:
    """|W|^2 row by row, float32 [out]."""
    weight = getattr(layer, "weight", None)
    if isinstance(weight, nn.Parameter) and weight.is_floating_point():
        return weight.float().square().sum(1)
    width = int(layer.in_features)  # type: ignore[arg-type]
    blocks = torch.eye(width, device=device_of(layer)).split(ROWS)
    return torch.stack([answers(layer, block).square().sum(1) for block in blocks]).sum(0)


def build(host: Host, config: Config, generator: torch.Generator) -> Built:
    """Fresh matrices and the lengths of the base's rows. Raises UserError as LoRA's does."""
    chosen = choose(host.sites(), config.targets)
    parts: dict[str, Part] = {}
    for site in chosen:
        for ours, (down, up, scale) in lora.matrices(config, site, generator).items():
            parts[ours] = Dora(down, up, scale, config.dropout, host.module(ours))
    return Built(host, parts, chosen)


def tensors(built: Built) -> dict[str, Tensor]:
    """LoRA's and `lora_magnitude_vector`; a layer of a shared matrix that is not adapted keeps its own lengths."""
    out = lora.tensors(built)
    for site in built.sites:
        found: dict[str, Any] = {place.ours: built.parts[place.ours] for place in site.places}
        rest = torch.ones(site.total)
        if sum(place.outputs for place in site.places) < site.total:
            whole = next(other for other in built.host.sites() if other.stored == site.stored)
            rest = whole.put({p.ours: squares(built.host.module(p.ours)).sqrt() for p in whole.places}, rest)
        lengths = {ours: part.m for ours, part in found.items()}
        out[f"{_peft.PREFIX}{site.stored}.lora_magnitude_vector"] = site.put(lengths, rest)
    return out


def fill(built: Built, shelf: _peft.Shelf) -> None:
    """As LoRA's, and the lengths."""
    lora.fill(built, shelf)
    for site in built.sites:
        lengths = shelf.take(f"{site.stored}.lora_magnitude_vector", (site.total,))
        for place in site.places:
            part: Any = built.parts[place.ours]
            part.m.copy_(place.take(lengths))


def is_mine(told: Mapping[str, Any]) -> bool:
    """Whether an adapter_config.json is of this kind."""
    return told.get("peft_type") == PEFT_TYPE and bool(told.get("use_dora"))


def to_peft(host: Host, config: Config, built: Built) -> dict[str, Any]:
    """The settings as PEFT names them."""
    return lora.to_peft(host, config, built) | {"use_dora": True}


READ = lora.READ
from_peft = lora.from_peft
