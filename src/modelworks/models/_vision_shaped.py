"""The shape that ViT set: patches with class tokens before them, and a stack that looks both ways."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn

from ..base.config import Count, Settings
from ..nn.activation import ACTIVATIONS
from ..nn.arithmetic import Shape
from ..nn.heads import First
from ..nn.masks import Bidirectional
from ..nn.norm import LayerNorm
from ..nn.stack import Stack
from ..nn.stems import Patches
from ..nn.transformer import Transformer
from . import _gpt_shaped as gpt_shaped
from ._fresh import initialise
from ._stored import Stored, chosen, head_of, labels, missing, n_labels, need, per_layer, with_bias


class VisionShaped(Settings):
    """Shape of a vision transformer."""

    d_model: int = 768
    """Width of the residual stream."""
    n_layers: int = 12
    """Number of blocks."""
    n_heads: int = 12
    """Attention heads; d_model must be a multiple of it."""
    d_ff: int = 3072
    """Inner width of the feed-forward part."""
    image_size: Count = 224
    """Height and width of an image in pixels."""
    patch_size: Count = 16
    """Height and width of a patch in pixels."""
    channels: Count = 3
    """Colours of a pixel."""
    activation: str = "gelu"
    """What stands between the feed-forward matrices."""
    attention_bias: bool = True
    """Queries, keys and values have a bias."""
    norm_eps: float = 1e-12
    """Added to the variance in layer norm."""
    init_std: float = 0.02
    """Standard deviation of fresh weights; the matrices that write to the residual stream start at zero."""
    dropout: float = 0.0
    """Share dropped from embeddings, attention and residual branches, in training only."""
    head: str = "classes"
    """What reads the stack out: scores of classes, or nothing."""
    n_labels: int = 1000
    """Classes, where the head has them."""


AnyShape = TypeVar("AnyShape", bound=VisionShaped)


def pooler(config: VisionShaped) -> First:
    """The first vector through a dense layer and tanh."""
    return First(nn.Sequential(nn.Linear(config.d_model, config.d_model), nn.Tanh()))


def assemble(config: VisionShaped, n_firsts: int, head: nn.Module) -> Transformer:
    """The model with fresh weights, on torch's current device; `n_firsts` learned vectors stand before the patches."""
    c = config
    count = (c.image_size // c.patch_size) ** 2
    stem = Patches(
        nn.Conv2d(c.channels, c.d_model, c.patch_size, c.patch_size),
        nn.Parameter(torch.zeros(1, n_firsts + count, c.d_model)),
        [nn.Parameter(torch.zeros(1, 1, c.d_model)) for _ in range(n_firsts)],
        dropout=c.dropout,
    )
    mask = Bidirectional()
    blocks = [
        gpt_shaped.block(
            layer, d_model=c.d_model, n_heads=c.n_heads, d_ff=c.d_ff, mask=mask, eps=c.norm_eps, dropout=c.dropout,
            activation=ACTIVATIONS[c.activation], bias=c.attention_bias,
        )
        for layer in range(c.n_layers)
    ]  # fmt: skip
    model = Transformer(stem, Stack(blocks, LayerNorm(c.d_model, c.norm_eps)), head)
    initialise(model, c.init_std, writers=0.0)
    return model


def shape(config: VisionShaped, n_firsts: int, n_classifiers: int) -> Shape:
    """What `nn.arithmetic` needs to know; the head has `n_classifiers`, or a pooler where there are none."""
    c = config
    count = (c.image_size // c.patch_size) ** 2
    pixels = c.channels * c.patch_size**2
    head = n_classifiers * c.n_labels if n_classifiers else c.d_model
    return Shape(
        vocab_size=0, d_model=c.d_model, n_layers=c.n_layers, n_heads=c.n_heads, n_kv_heads=c.n_heads,
        d_head=c.d_model // c.n_heads, d_ff=c.d_ff, feedforward_matrices=2, tied=True, causal=False,
        vectors_per_layer=gpt_shaped.vectors(c.d_model, c.d_ff, c.attention_bias),
        other_vectors=3 * c.d_model + head, learned_positions=count + 2 * n_firsts,
        other_matrices=(pixels + head) * c.d_model,
    )  # fmt: skip


def names(config: VisionShaped, model: str, layer: str, parts: dict[str, str], firsts: list[str]) -> dict[str, Stored]:
    """Our names and theirs of all but a classifier: under `model`, a block's under `layer`."""
    patterns = {f"stem.firsts.{number}": Stored(f"{model}embeddings.{name}") for number, name in enumerate(firsts)}
    patterns["stem.positions"] = Stored(f"{model}embeddings.position_embeddings")
    patterns |= with_bias({"stem.project": f"{model}embeddings.patch_embeddings.projection"})
    patterns |= gpt_shaped.named(f"{model}{layer}", parts, config.attention_bias)
    patterns |= with_bias({"stack.norm": f"{model}layernorm"})
    if config.head == "none":
        patterns |= with_bias({"head.pool.then.0": "pooler.dense"})
    return per_layer(patterns, config.n_layers)


def to_hf(config: VisionShaped, model_type: str) -> dict[str, Any]:
    """The settings as `transformers` names them."""
    c = config
    return labels(c) | {
        "model_type": model_type,
        "hidden_size": c.d_model,
        "num_hidden_layers": c.n_layers,
        "num_attention_heads": c.n_heads,
        "intermediate_size": c.d_ff,
        "image_size": c.image_size,
        "patch_size": c.patch_size,
        "num_channels": c.channels,
        "hidden_act": c.activation,
        "qkv_bias": c.attention_bias,
        "layer_norm_eps": c.norm_eps,
        "initializer_range": c.init_std,
        "hidden_dropout_prob": c.dropout,
        "attention_probs_dropout_prob": c.dropout,
    }


def from_hf(kind: type[AnyShape], settings: dict[str, Any], model_type: str, heads: dict[str, str]) -> AnyShape:
    """Our settings from `transformers`'. Raises UserError for what we do not do."""
    width = settings.get("hidden_size")
    need(settings, model_type, {"pooler_act": ("tanh",), "pooler_output_size": (width, None)})
    missing(settings, ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"))
    for key in ("image_size", "patch_size"):
        need({key: isinstance(settings.get(key, 0), int)}, model_type, {key: (True,)})
    activation = settings.get("hidden_act", "gelu")
    chosen(ACTIVATIONS, activation, "hidden_act", model_type)
    fields: dict[str, Callable[..., Any] | Any] = {
        "d_model": width,
        "n_layers": settings["num_hidden_layers"],
        "n_heads": settings["num_attention_heads"],
        "d_ff": settings["intermediate_size"],
        "image_size": settings.get("image_size", 224),
        "patch_size": settings.get("patch_size", 16),
        "channels": settings.get("num_channels", 3),
        "activation": activation,
        "attention_bias": settings.get("qkv_bias", True),
        "norm_eps": settings.get("layer_norm_eps", 1e-12),
        "init_std": settings.get("initializer_range", 0.02),
        "dropout": settings.get("hidden_dropout_prob", 0.0),
        "head": head_of(settings, heads),
    }
    if fields["head"] != "none":
        fields["n_labels"] = n_labels(settings)
    return kind(**fields)
