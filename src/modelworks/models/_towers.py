"""The two towers of CLIP and SigLIP, text and vision, and how they stand in Hugging Face files."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..base.config import Count, Settings
from ..nn.activation import ACTIVATIONS
from ..nn.arithmetic import Shape
from ..nn.heads import Headless
from ..nn.norm import LayerNorm
from ..nn.stack import Stack
from ..nn.stems import Patches, PositionedTokens
from ..nn.transformer import Transformer
from . import _gpt_shaped as gpt_shaped
from ._stored import Stored, chosen, need, per_layer, with_bias


class Tower(Settings):
    """Shape of a tower."""

    d_model: int
    """Width of the residual stream."""
    n_layers: int = 12
    """Number of blocks."""
    n_heads: int
    """Attention heads; d_model must be a multiple of it."""
    d_ff: int
    """Inner width of the feed-forward part."""
    activation: str
    """What stands between the feed-forward matrices."""
    norm_eps: float
    """Added to the variance in layer norm."""


class TextTower(Tower):
    """Shape of a tower that reads text."""

    vocab_size: Count
    """Number of words."""
    max_len: Count
    """Positions that it has."""


class ImageTower(Tower):
    """Shape of a tower that looks at images."""

    image_size: Count = 224
    """Height and width of an image in pixels."""
    patch_size: Count = 16
    """Height and width of a patch in pixels."""
    channels: Count = 3
    """Colours of a pixel."""


def stack(tower: Tower, mask: nn.Module, norm: nn.Module) -> Stack:
    """The blocks of a tower, all of which see what `mask` says, and the `norm` behind them."""
    t = tower
    blocks = [
        gpt_shaped.block(
            layer, d_model=t.d_model, n_heads=t.n_heads, d_ff=t.d_ff, mask=mask, eps=t.norm_eps,
            activation=ACTIVATIONS[t.activation],
        )
        for layer in range(t.n_layers)
    ]  # fmt: skip
    return Stack(blocks, norm)


def text(tower: TextTower, mask: nn.Module, pool: nn.Module) -> Transformer:
    """int64 [N, T] -> hidden [N, T, D] and, by `pool`, one vector a text."""
    t = tower
    stem = PositionedTokens(nn.Embedding(t.vocab_size, t.d_model), nn.Embedding(t.max_len, t.d_model))
    return Transformer(stem, stack(t, mask, LayerNorm(t.d_model, t.norm_eps)), Headless(pool))


def image(
    tower: ImageTower,
    mask: nn.Module,
    *,
    first: bool,
    before: nn.Module | None,
    norm: nn.Module,
    pool: nn.Module | None,
) -> Transformer:
    """With a class token and no bias of the patches (`first`: CLIP), or the other way round (SigLIP)."""
    t = tower
    count = (t.image_size // t.patch_size) ** 2 + first
    stem = Patches(
        nn.Conv2d(t.channels, t.d_model, t.patch_size, t.patch_size, bias=not first),
        nn.Parameter(torch.zeros(count, t.d_model)),
        [nn.Parameter(torch.zeros(t.d_model))] if first else [],
        norm=before,
    )
    return Transformer(stem, stack(t, mask, norm), Headless(pool))


def shape(tower: Tower, **others: Any) -> Shape:
    """What `nn.arithmetic` needs to know of a tower; `others` (vectors and matrices outside its blocks) as given."""
    t = tower
    facts: dict[str, Any] = {
        "vocab_size": 0, "d_model": t.d_model, "n_layers": t.n_layers, "n_heads": t.n_heads, "n_kv_heads": t.n_heads,
        "d_head": t.d_model // t.n_heads, "d_ff": t.d_ff, "feedforward_matrices": 2, "tied": True,
        "vectors_per_layer": gpt_shaped.vectors(t.d_model, t.d_ff), "other_vectors": 2 * t.d_model,
    }  # fmt: skip
    if isinstance(t, TextTower):
        facts |= {"vocab_size": t.vocab_size, "learned_positions": t.max_len}
    elif isinstance(t, ImageTower):
        pixels = t.channels * t.patch_size**2
        facts |= {
            "learned_positions": (t.image_size // t.patch_size) ** 2,
            "other_matrices": pixels * t.d_model,
            "causal": False,
        }
    others["other_matrices"] = facts.get("other_matrices", 0) + others.get("other_matrices", 0)
    others["learned_positions"] = facts["learned_positions"] + others.get("learned_positions", 0)
    return Shape(**facts | others)


_LAYER = {
    "attention_norm": "layer_norm1",
    "attention.query": "self_attn.q_proj",
    "attention.key": "self_attn.k_proj",
    "attention.value": "self_attn.v_proj",
    "attention.out": "self_attn.out_proj",
    "feedforward_norm": "layer_norm2",
    "feedforward.up": "mlp.fc1",
    "feedforward.down": "mlp.fc2",
}


def text_names(tower: TextTower) -> dict[str, Stored]:
    """Ours and theirs within a text tower."""
    names = {
        "stem.tokens.weight": Stored("embeddings.token_embedding.weight"),
        "stem.positions.weight": Stored("embeddings.position_embedding.weight"),
    }
    names |= gpt_shaped.named("encoder.layers.{}.", _LAYER) | with_bias({"stack.norm": "final_layer_norm"})
    return per_layer(names, tower.n_layers)


def image_names(tower: ImageTower) -> dict[str, Stored]:
    """Ours and theirs within an image tower, those apart that CLIP and SigLIP do not share."""
    names = {
        "stem.project.weight": Stored("embeddings.patch_embedding.weight"),
        "stem.positions": Stored("embeddings.position_embedding.weight"),
    }
    return per_layer(names | gpt_shaped.named("encoder.layers.{}.", _LAYER), tower.n_layers)


def under(ours: str, theirs: str, names: dict[str, Stored]) -> dict[str, Stored]:
    """The same names one level down: 'text.' and 'text_model.', say."""
    return {ours + name: place.moved(theirs) for name, place in names.items()}


def to_hf(tower: Tower, model_type: str) -> dict[str, Any]:
    """A tower's settings as `transformers` names them."""
    t = tower
    settings: dict[str, Any] = {
        "model_type": model_type,
        "hidden_size": t.d_model,
        "num_hidden_layers": t.n_layers,
        "num_attention_heads": t.n_heads,
        "intermediate_size": t.d_ff,
        "hidden_act": t.activation,
        "layer_norm_eps": t.norm_eps,
        "attention_dropout": 0.0,
    }
    if isinstance(t, TextTower):
        settings |= {"vocab_size": t.vocab_size, "max_position_embeddings": t.max_len}
        settings |= {"bos_token_id": None, "eos_token_id": t.vocab_size - 1, "pad_token_id": None}
    elif isinstance(t, ImageTower):
        settings |= {"image_size": t.image_size, "patch_size": t.patch_size, "num_channels": t.channels}
    return settings


def from_hf(usual: Tower, settings: dict[str, Any], family: str) -> Any:
    """A tower from `transformers`' settings; what is not said is as in `usual`. Raises UserError."""
    need(settings, family, {"attention_dropout": (0.0, 0)})
    names = {
        "hidden_size": "d_model", "num_hidden_layers": "n_layers", "num_attention_heads": "n_heads",
        "intermediate_size": "d_ff", "hidden_act": "activation", "layer_norm_eps": "norm_eps",
        "vocab_size": "vocab_size", "max_position_embeddings": "max_len", "image_size": "image_size",
        "patch_size": "patch_size", "num_channels": "channels",
    }  # fmt: skip
    fields = type(usual).model_fields
    found = {ours: settings[theirs] for theirs, ours in names.items() if theirs in settings and ours in fields}
    tower = type(usual)(**usual.model_dump() | found)
    chosen(ACTIVATIONS, tower.activation, "hidden_act", family)
    return tower
