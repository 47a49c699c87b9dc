"""Bottleneck adapters: a narrow network after each part of a block (Houlsby et al. 2019, arXiv:1902.00751).

    y = h + up(activation(down(h))),   h what the attention or the feed-forward part gives, up = 0 at first

Pfeiffer et al. 2020 (arXiv:2005.00247) found one after the feed-forward part enough. It is not linear, so it cannot be
merged. PEFT has no format for it: the directory has PEFT's shape with `peft_type` BOTTLENECK and our names inside.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ..base.config import Settings
from ..base.errors import UserError
from . import _peft
from ._sites import Host, Site
from ._wrapped import Base, Built, Part

MERGES, STARTS_AS_IDENTITY, PEFT_TYPE = False, True, "BOTTLENECK"
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu, "silu": F.silu}


class Config(Settings):
    """How wide the networks are and where they stand."""

    width: int = Field(64, ge=1)
    """Inner width."""
    style: Literal["pfeiffer", "houlsby"] = "pfeiffer"
    """pfeiffer: after the feed-forward part; houlsby: after the attention too."""
    activation: Literal["relu", "gelu", "silu"] = "gelu"
    """Between the two matrices."""


class Bottleneck(Part):
    """One network: down [width, D], up [D, width], each with a bias."""

    def __init__(self, d_model: int, config: Config, generator: torch.Generator) -> None:
        super().__init__()
        bound = d_model**-0.5
        self.down = nn.Parameter(torch.empty(config.width, d_model).uniform_(-bound, bound, generator=generator))
        self.down_bias = nn.Parameter(torch.zeros(config.width))
        self.up = nn.Parameter(torch.zeros(d_model, config.width))
        self.up_bias = nn.Parameter(torch.zeros(d_model))
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, base: Base, x: Tensor, *rest: Any) -> Tensor:
        """[..., in] -> [..., D]."""
        h = base(x, *rest)
        down = self.activation(F.linear(h, self.down.to(h.dtype), self.down_bias.to(h.dtype)))
        return h + F.linear(down, self.up.to(h.dtype), self.up_bias.to(h.dtype)).to(h.dtype)


def build(host: Host, config: Config, generator: torch.Generator) -> Built:
    """A fresh network at every place. Raises UserError where the model has no such places."""
    parts: dict[str, Part] = {}
    for path, block in host.modules():
        if not hasattr(block, "attention") or not hasattr(block, "feedforward"):
            continue
        width = host.module(f"{path}.attention.out").out_features
        places = ("feedforward",) if config.style == "pfeiffer" else ("attention.out", "feedforward")
        for place in places:
            parts[f"{path}.{place}"] = Bottleneck(int(width), config, generator)  # type: ignore[arg-type]
    if not parts:
        raise UserError("bottleneck: this model has no blocks with attention and feed-forward parts; use another kind.")
    return Built(host, parts, [])


def tensors(built: Built) -> dict[str, Tensor]:
    """Each network's matrices under our name of the module that it follows."""
    return {
        f"{_peft.PREFIX}{name}.bottleneck.{label}": tensor
        for name, part in built.parts.items()
        for label, tensor in part.named_parameters()
    }


def fill(built: Built, shelf: _peft.Shelf) -> None:
    """Put a file's tensors into a fresh adapter. Raises UserError for a missing one or another shape."""
    for name, part in built.parts.items():
        for label, tensor in part.named_parameters():
            tensor.copy_(shelf.take(f"{name}.bottleneck.{label}", tensor.shape))


def is_mine(told: Mapping[str, Any]) -> bool:
    """Whether an adapter_config.json is of this kind."""
    return told.get("peft_type") == PEFT_TYPE


def to_peft(host: Host, config: Config, built: Built) -> dict[str, Any]:
    """The settings, in the same shape as PEFT's."""
    return config.model_dump()


READ = _peft.Fields(read=("width", "style", "activation"))


def from_peft(told: Mapping[str, Any], shelf: _peft.Shelf, sites: list[Site]) -> dict[str, Any]:
    """Our settings from the directory's."""
    return {key: told[key] for key in READ.read if key in told}
