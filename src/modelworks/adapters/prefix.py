"""Prefix tuning: learned keys and values in front of every layer's own (Li & Liang 2021, arXiv:2101.00190).

They take a share of the attention however they start, so the model is another from the first step on, and what they do
depends on the text, so they cannot be merged. They start as what the model makes of words drawn from its vocabulary,
which the paper found best (section 7.4: real words).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from ..base.config import Settings
from ..base.errors import UserError
from ..nn.transformer import Transformer
from . import _peft, _virtual
from ._sites import Host, Site
from ._wrapped import Built

MERGES, STARTS_AS_IDENTITY, PEFT_TYPE = False, False, "PREFIX_TUNING"


class Config(Settings):
    """How many virtual tokens there are."""

    tokens: int = Field(20, ge=1)
    """Virtual tokens in front of the text; they take places of the context."""


class Prefix(nn.Module):
    """Keys and values of P virtual tokens: [L, 2, K, P, D]."""

    def __init__(self, keys_values: Tensor) -> None:
        super().__init__()
        self.numbers = nn.Parameter(keys_values)
        self.count = keys_values.shape[3]

    def keys_values(self, model: Transformer) -> _virtual.KeysValues:
        """A layer each: [1, K, P, D]."""
        layers = self.numbers.unbind(0)
        return [layer[:1] for layer in layers], [layer[1:] for layer in layers]


def build(host: Host, config: Config, generator: torch.Generator) -> Built:
    """A prefix of drawn words. Raises UserError for a model that is no decoder, or has no room for it."""
    model, _ = _virtual.check(host)
    room = getattr(host.config, "max_len", None)
    if room is not None and config.tokens >= room:
        raise UserError(f"tokens: {config.tokens} virtual tokens leave no room in a context of {room}; use fewer.")
    table = model.stem.tokens.weight
    with torch.no_grad():
        words = table[torch.randint(len(table), (config.tokens,), generator=generator)].float()
        keys, values = _virtual.run_alone(model, words)
        start = torch.stack([torch.cat(pair) for pair in zip(keys, values, strict=True)])
    return Built(host, {}, [], Prefix(start.float().clone()))


def tensors(built: Built) -> dict[str, Tensor]:
    """PEFT's one tensor: [P, L * 2 * K * D]."""
    prefix: Any = built.shared
    return {"prompt_embeddings": prefix.numbers.permute(3, 0, 1, 2, 4).flatten(1)}


def fill(built: Built, shelf: _peft.Shelf) -> None:
    """Put a file's tensor into a fresh prefix. Raises UserError where it has another shape."""
    prefix: Any = built.shared
    shape = prefix.numbers.permute(3, 0, 1, 2, 4).shape
    flat = shelf.take("prompt_embeddings", (shape[0], shape[1:].numel()))
    prefix.numbers.copy_(flat.view(shape).permute(1, 2, 3, 0, 4))


def is_mine(told: Mapping[str, Any]) -> bool:
    """Whether an adapter_config.json is of this kind."""
    return told.get("peft_type") == PEFT_TYPE


def to_peft(host: Host, config: Config, built: Built) -> dict[str, Any]:
    """The settings as PEFT names them."""
    _, layers = _virtual.check(host)
    first = layers[0]
    return {
        "num_virtual_tokens": config.tokens,
        "num_layers": len(layers),
        "num_attention_heads": first.n_kv_heads,
        "token_dim": first.n_kv_heads * first.d_head,
        "num_transformer_submodules": 1,
        "encoder_hidden_size": first.n_kv_heads * first.d_head,
        "prefix_projection": False,
        "modules_to_save": None,
    }


READ = _peft.Fields(
    read=("num_virtual_tokens",),
    only={"num_transformer_submodules": (1, None), "modules_to_save": (None, [])},
    # what a projection made is stored, the projection is not; the sizes are checked on the tensor
    neutral=(
        "prefix_projection",
        "encoder_hidden_size",
        "init_weights",
        "num_layers",
        "num_attention_heads",
        "token_dim",
    ),
)


def from_peft(told: Mapping[str, Any], shelf: _peft.Shelf, sites: list[Site]) -> dict[str, Any]:
    """Our settings from PEFT's."""
    return {"tokens": told.get("num_virtual_tokens") or 20}
