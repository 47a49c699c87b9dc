"""Decoders of Llama's shape whose feed-forward parts are mixtures of experts: what their families share."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..base.config import Count
from ..nn.arithmetic import Shape
from ..nn.experts import Experts, Grouped, Mix, MixtureBlock, Router, Shares
from . import _llama_shaped as llama_shaped
from ._llama_shaped import LlamaShaped
from ._stored import Stored


class Mixture(LlamaShaped):
    """Shape of a decoder whose blocks choose among experts."""

    d_ff: int
    """Inner width of an expert."""
    n_experts: Count
    """Experts in each block."""
    n_active: Count = 2
    """How many of them a token passes through."""
    balance: float = 0.001
    """What the load-balance loss is multiplied by before it is added to the loss of training."""


def experts(
    config: Mixture,
    shares: Shares,
    mix: Mix | None = None,
    bias: bool = False,
) -> Experts:
    """The feed-forward part; `bias` gives the router and every matrix one."""
    c = config
    return Experts(
        Router(c.d_model, c.n_experts, c.n_active, shares, bias),
        Grouped(c.n_experts, c.d_model, c.d_ff, bias),
        Grouped(c.n_experts, c.d_model, c.d_ff, bias),
        Grouped(c.n_experts, c.d_ff, c.d_model, bias),
        mix,
        c.balance,
    )


def block(config: Mixture, attends: nn.Module, feeds: Experts) -> nn.Module:
    """A pre-norm block of the two parts."""
    return llama_shaped.block(config, attends, feeds, MixtureBlock)


def shape(config: Mixture, **others: Any) -> Shape:
    """What `nn.arithmetic` needs to know; `others` where the family differs."""
    return llama_shaped.shape(config, **{"n_experts": config.n_experts, "n_active": config.n_active} | others)


def names(config: Mixture, router: str, gate: str, up: str, down: str) -> dict[str, str | Stored]:
    """Ours and theirs within a block, where each expert's matrices stand for themselves (`{{}}` is its number)."""
    rest = {ours: theirs for ours, theirs in llama_shaped.NAMES.items() if not ours.startswith("feedforward.")}
    stacked = {"gate": gate, "up": up, "down": down}
    places = {f"feedforward.{ours}.weight": Stored(theirs, stack=config.n_experts) for ours, theirs in stacked.items()}
    return rest | {"feedforward.router.weight": router} | places


def to_hf(config: Mixture) -> dict[str, Any]:
    """The settings that `transformers` names alike in all of them."""
    return {"num_experts_per_tok": config.n_active, "router_aux_loss_coef": config.balance}


def from_hf(settings: dict[str, Any], n_active: int, balance: float = 0.001) -> dict[str, Any]:
    """Our settings from those, with what `transformers` takes where a config is silent."""
    return {
        "n_active": settings.get("num_experts_per_tok", n_active),
        "balance": settings.get("router_aux_loss_coef", balance),
    }
