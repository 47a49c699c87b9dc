"""LoRA: a product of two narrow matrices added to a frozen one (Hu et al. 2021, arXiv:2106.09685).

    y = W x + b + s B A x,   A [rank, in], B [out, rank], B = 0 at first,   s = alpha / rank

With rsLoRA s = alpha / sqrt(rank) (Kalajdzievski 2023, arXiv:2312.03732); LoRA+ lets B learn faster than A (Hayou et
al. 2024, arXiv:2402.12354). Matrices that the checkpoint keeps in one share A, as in PEFT.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn
from torch.nn import functional as F

from ..base.config import Settings
from ..base.errors import UserError
from . import _peft
from ._sites import ALL, Host, Site, by_pattern, choose, ours
from ._wrapped import Base, Built, Part

MERGES, STARTS_AS_IDENTITY, PEFT_TYPE = True, True, "LORA"


class Config(Settings):
    """How large the matrices are and beside which layers they stand."""

    rank: int = Field(8, ge=1)
    """Rows of A."""
    alpha: float = Field(16.0, gt=0)
    """Strength: what is added is multiplied by alpha / rank."""
    targets: str | list[str] = ALL
    """Layers: all-linear, a list of names or their ends (query, q_proj, c_attn ...), or a regular expression."""
    rank_pattern: dict[str, int] = Field(default_factory=dict)
    """Other ranks for layers whose name fits: {expression: rank}."""
    alpha_pattern: dict[str, float] = Field(default_factory=dict)
    """Other strengths for layers whose name fits: {expression: alpha}."""
    rank_stabilised: bool = False
    """rsLoRA: multiply by alpha / sqrt(rank), so that large ranks learn as fast as small ones."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Share of the input that is dropped before A, in training only."""
    plus: float = Field(1.0, gt=0)
    """LoRA+: how many times faster B learns than A (its paper: 16)."""

    @field_validator("rank_pattern")
    @classmethod
    def _positive(cls, value: dict[str, int]) -> dict[str, int]:
        if any(rank < 1 for rank in value.values()):
            raise ValueError("a rank is at least 1")
        return value


class Lora(Part):
    """One layer's share of a LoRA adapter: A [rank, in], B [out, rank]."""

    def __init__(self, down: nn.Parameter, up: nn.Parameter, scale: float, dropout: float) -> None:
        super().__init__()
        self.A, self.B, self.scale, self.dropout = down, up, scale, dropout

    def forward(self, base: Base, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        flat = x.reshape(-1, x.shape[-1])
        y = base(flat)
        down, up = self.change(flat, y.dtype)
        # a plain layer's answer is nobody else's: what is added goes into its memory
        y = y.addmm_(down, up) if type(base) is nn.Linear else torch.addmm(y, down, up)
        return y.view(*x.shape[:-1], y.shape[-1])

    def change(self, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """s A x [N, rank] and B' [rank, out]: their product is what is added."""
        dropped = F.dropout(x, self.dropout) if self.dropout and self.training else x
        down = F.linear(dropped, self.A.to(x.dtype)) * self.scale
        return down.to(dtype), self.B.t().to(dtype)

    def product(self) -> Tensor:
        """s B A, float32 [out, in]."""
        return self.scale * (self.B.float() @ self.A.float())

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return (weight.float() + self.product()).to(weight.dtype), None


def scale_of(config: Config, site: Site) -> tuple[int, float]:
    """Rank and multiplier at a site. Raises UserError where a rank is larger than the layer."""
    rank = int(by_pattern(config.rank_pattern, site, config.rank))
    alpha = float(by_pattern(config.alpha_pattern, site, config.alpha))
    widest = min(site.places[0].inputs, site.total)
    if rank > widest:
        raise UserError(f"rank: {rank} is more than {site.stored} has ({widest}); choose a smaller rank.")
    return rank, alpha / (math.sqrt(rank) if config.rank_stabilised else rank)


def matrices(
    config: Config, site: Site, generator: torch.Generator
) -> dict[str, tuple[nn.Parameter, nn.Parameter, float]]:
    """A (one for the site), B and multiplier for each of our layers. A as torch draws a linear layer's weight."""
    rank, scale = scale_of(config, site)
    bound = 1 / math.sqrt(site.places[0].inputs)
    down = nn.Parameter(torch.empty(rank, site.places[0].inputs).uniform_(-bound, bound, generator=generator))
    out = {}
    for place in site.places:
        up = nn.Parameter(torch.zeros(place.outputs, rank))
        up.rate = config.plus  # type: ignore[attr-defined]  # train.optim: times its learning rate
        out[place.ours] = (down, up, scale)
    return out


def build(host: Host, config: Config, generator: torch.Generator) -> Built:
    """Fresh matrices for every layer that is meant. Raises UserError for a target that is none, or too high a rank."""
    chosen = choose(host.sites(), config.targets)
    parts: dict[str, Part] = {}
    for site in chosen:
        for name, (down, up, scale) in matrices(config, site, generator).items():
            parts[name] = Lora(down, up, scale, config.dropout)
    return Built(host, parts, chosen)


def tensors(built: Built) -> dict[str, Tensor]:
    """The adapter under PEFT's names; layers of a shared matrix that have none get zero rows."""
    out: dict[str, Tensor] = {}
    for site in built.sites:
        found: dict[str, Any] = {place.ours: built.parts[place.ours] for place in site.places}
        first = found[site.places[0].ours]
        stored = f"{_peft.PREFIX}{site.stored}"
        out[f"{stored}.lora_A.weight"] = first.A
        out[f"{stored}.lora_B.weight"] = site.put(
            {name: part.B for name, part in found.items()}, first.B.new_zeros(site.total, first.B.shape[1])
        )
    return out


def fill(built: Built, shelf: _peft.Shelf) -> None:
    """Put a file's tensors into a fresh adapter. Raises UserError for a missing one or another shape."""
    for site in built.sites:
        parts: dict[str, Any] = {place.ours: built.parts[place.ours] for place in site.places}
        down = parts[site.places[0].ours].A
        down.copy_(shelf.take(f"{site.stored}.lora_A.weight", down.shape))
        up = shelf.take(f"{site.stored}.lora_B.weight", (site.total, down.shape[0]))
        for place in site.places:
            parts[place.ours].B.copy_(place.take(up))


def is_mine(told: Mapping[str, Any]) -> bool:
    """Whether an adapter_config.json is of this kind."""
    return told.get("peft_type") == PEFT_TYPE and not told.get("use_dora")


def to_peft(host: Host, config: Config, built: Built) -> dict[str, Any]:
    """The settings as PEFT names them."""
    patterns = {site.stored: scale_of(config, site)[0] for site in built.sites}
    alphas = {site.stored: float(by_pattern(config.alpha_pattern, site, config.alpha)) for site in built.sites}
    return {
        "r": config.rank,
        "lora_alpha": _peft.plain(config.alpha),
        "lora_dropout": config.dropout,
        "use_rslora": config.rank_stabilised,
        "use_dora": False,
        "bias": "none",
        "init_lora_weights": True,
        "fan_in_fan_out": _peft.transposed(host, built.sites),
        "target_modules": _peft.target_modules(host, built.sites),
        "rank_pattern": {name: rank for name, rank in patterns.items() if rank != config.rank},
        "alpha_pattern": {name: _peft.plain(alpha) for name, alpha in alphas.items() if alpha != config.alpha},
        "modules_to_save": None,
        "layers_to_transform": None,
        "layers_pattern": None,
    }


READ = _peft.Fields(
    read=("r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern"),
    only={
        "bias": ("none",),
        "lora_bias": (False,),
        "modules_to_save": (None, []),
        # the others (pissa, olora, corda, loftq ...) start by changing the base, which is not stored here
        "init_lora_weights": (True, False, "gaussian", "orthogonal", "eva"),
    },
    neutral=(
        "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "fan_in_fan_out",
        "megatron_core", "megatron_config", "qalora_group_size", "runtime_config", "eva_config",
    ),
)  # fmt: skip


def from_peft(told: Mapping[str, Any], shelf: _peft.Shelf, sites: list[Site]) -> dict[str, Any]:
    """Our settings from PEFT's; which layers is said by the tensors that are there."""
    return {
        "rank": told.get("r", 8),
        "alpha": told.get("lora_alpha", 8),
        "targets": ours(sites),
        "rank_pattern": told.get("rank_pattern") or {},
        "alpha_pattern": told.get("alpha_pattern") or {},
        "rank_stabilised": told.get("use_rslora", False),
        "dropout": told.get("lora_dropout", 0.0),
    }
