"""GPT-2: layer norm, learned positions, full attention with biases, GELU (Radford et al. 2019)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

from torch import nn

from ..base.config import Count, Settings
from ..nn.activation import tanh_gelu
from ..nn.arithmetic import Shape
from ..nn.masks import Causal
from ..nn.norm import LayerNorm
from ..nn.stack import Stack
from ..nn.stems import PositionedTokens
from ..nn.transformer import Transformer
from . import _gpt_shaped as gpt_shaped
from ._fresh import initialise
from ._stored import Equal, Stored, head_of, idle, labels, missing, n_labels, need, per_layer, unprefixed

HF_MODEL_TYPE = "gpt2"
HF_ARCHITECTURES = {"GPT2LMHeadModel": "language", "GPT2Model": "none", "GPT2ForSequenceClassification": "classes"}


class Config(Settings):
    """Shape of a GPT-2 model."""

    vocab_size: Count = 50257
    """Number of words."""
    d_model: int
    """Width of the residual stream."""
    n_layers: int
    """Number of blocks."""
    n_heads: int
    """Attention heads; d_model must be a multiple of it."""
    d_ff: int
    """Inner width of the feed-forward part."""
    max_len: Count = 1024
    """Positions that the model has."""
    norm_eps: float = 1e-5
    """Added to the variance in layer norm."""
    tie_word_embeddings: bool = True
    """The head reads with the embedding's own matrix."""
    init_std: float = 0.02
    """Standard deviation of fresh weights; divided by sqrt(2 n_layers) where they write to the residual stream."""
    dropout: float = 0.1
    """Share dropped from embeddings, attention and residual branches, in training only."""
    head: Literal["language", "none", "classes"] = "language"
    """What reads the stack out: scores of the next word, nothing, or scores of classes from the last token."""
    n_labels: int = 2
    """Classes, where head is 'classes'."""


PRESETS = {
    "gpt2-nano": Config(vocab_size=256, d_model=128, n_layers=4, n_heads=4, d_ff=512, max_len=256, dropout=0.0),
    "gpt2": Config(d_model=768, n_layers=12, n_heads=12, d_ff=3072),
    "gpt2-medium": Config(d_model=1024, n_layers=24, n_heads=16, d_ff=4096),
    "gpt2-large": Config(d_model=1280, n_layers=36, n_heads=20, d_ff=5120),
    "gpt2-xl": Config(d_model=1600, n_layers=48, n_heads=25, d_ff=6400),
}


def build(config: Config) -> Transformer:
    """The model with fresh weights, on torch's current device."""
    mask = Causal()
    return assemble(config, [mask] * config.n_layers)


def assemble(config: Config, masks: Sequence[nn.Module]) -> Transformer:
    """The model whose layers see what `masks` say, one each."""
    c = config
    blocks = [
        gpt_shaped.block(
            layer, d_model=c.d_model, n_heads=c.n_heads, d_ff=c.d_ff, mask=masks[layer], activation=tanh_gelu,
            eps=c.norm_eps, dropout=c.dropout,
        )
        for layer in range(c.n_layers)
    ]  # fmt: skip
    words = nn.Embedding(c.vocab_size, c.d_model)
    stem = PositionedTokens(words, nn.Embedding(c.max_len, c.d_model), c.dropout)
    stack = Stack(blocks, LayerNorm(c.d_model, c.norm_eps))
    model = Transformer(stem, stack, gpt_shaped.reader(c, words))
    initialise(model, c.init_std, writers=c.init_std / math.sqrt(2 * c.n_layers))
    return model


def shape(config: Config) -> Shape:
    """What `nn.arithmetic` needs to know."""
    c = config
    return Shape(
        vocab_size=c.vocab_size, d_model=c.d_model, n_layers=c.n_layers, n_heads=c.n_heads, n_kv_heads=c.n_heads,
        d_head=c.d_model // c.n_heads, d_ff=c.d_ff, feedforward_matrices=2,
        tied=c.tie_word_embeddings or c.head != "language",
        other_matrices=c.n_labels * c.d_model if c.head == "classes" else 0,
        learned_positions=c.max_len, vectors_per_layer=gpt_shaped.vectors(c.d_model, c.d_ff),
        other_vectors=2 * c.d_model,
    )  # fmt: skip


def _layer() -> dict[str, Stored]:
    """Names of one block: matrices are stored [in, out]; query, key and value side by side in `c_attn`."""
    out = {}
    for number, ours in enumerate(("query", "key", "value")):
        out[f"attention.{ours}.weight"] = Stored("attn.c_attn.weight", transpose=True, part=number, cut=Equal(3, -1))
        out[f"attention.{ours}.bias"] = Stored("attn.c_attn.bias", part=number, cut=Equal(3, -1))
    for ours, theirs in {
        "attention.out": "attn.c_proj",
        "feedforward.up": "mlp.c_fc",
        "feedforward.down": "mlp.c_proj",
    }.items():
        out[f"{ours}.weight"] = Stored(f"{theirs}.weight", transpose=True)
        out[f"{ours}.bias"] = Stored(f"{theirs}.bias")
    for ours, theirs in {"attention_norm": "ln_1", "feedforward_norm": "ln_2"}.items():
        out[f"{ours}.weight"], out[f"{ours}.bias"] = Stored(f"{theirs}.weight"), Stored(f"{theirs}.bias")
    return out


HF_PREFIX = "transformer."
"""What some files (the published ones) leave out at the start of their names."""
HF_IGNORED = (r".*\.attn\.bias", r".*\.attn\.masked_bias")
"""Tensors of older files that carry nothing learned: the causal mask."""


def hf_names(config: Config) -> dict[str, Stored]:
    """Our parameter names and where each stands in a Hugging Face file."""
    patterns = {
        "stem.tokens.weight": Stored("transformer.wte.weight"),
        "stem.positions.weight": Stored("transformer.wpe.weight"),
    }
    patterns |= {f"stack.blocks.{{}}.{ours}": place.moved("transformer.h.{}.") for ours, place in _layer().items()}
    patterns |= {f"stack.norm.{kind}": Stored(f"transformer.ln_f.{kind}") for kind in ("weight", "bias")}
    if config.head == "language" and not config.tie_word_embeddings:
        patterns["head.projection.weight"] = Stored("lm_head.weight")
    elif config.head == "classes":
        patterns["head.projection.weight"] = Stored("score.weight")
    found = per_layer(patterns, config.n_layers)
    return unprefixed(found, HF_PREFIX) if config.head == "none" else found


def hf_tied(config: Config) -> dict[str, str]:
    """Copies that some files hold of a tensor, and the name of the original."""
    tied = config.tie_word_embeddings and config.head == "language"
    return {"lm_head.weight": "transformer.wte.weight"} if tied else {}


def to_hf(config: Config) -> dict[str, Any]:
    """The settings as `transformers` names them."""
    c = config
    return labels(c) | {
        "model_type": HF_MODEL_TYPE,
        "vocab_size": c.vocab_size,
        "n_embd": c.d_model,
        "n_layer": c.n_layers,
        "n_head": c.n_heads,
        "n_inner": c.d_ff,
        "n_positions": c.max_len,
        "layer_norm_epsilon": c.norm_eps,
        "tie_word_embeddings": c.tie_word_embeddings,
        "initializer_range": c.init_std,
        "resid_pdrop": c.dropout,
        "embd_pdrop": c.dropout,
        "attn_pdrop": c.dropout,
        "activation_function": "gelu_new",
    }


def from_hf(settings: dict[str, Any]) -> Config:
    """Our settings from `transformers`'. Raises UserError for what we do not do."""
    need(
        settings,
        "gpt2",
        {"activation_function": ("gelu_new", "gelu_pytorch_tanh"), "scale_attn_weights": (True,),
         "scale_attn_by_inverse_layer_idx": (False,), "add_cross_attention": (False,)},
    )  # fmt: skip
    idle(settings, "n_ctx")  # older files say n_positions twice
    missing(settings, ("vocab_size", "n_embd", "n_layer", "n_head"))
    return Config(
        vocab_size=settings["vocab_size"],
        d_model=settings["n_embd"],
        n_layers=settings["n_layer"],
        n_heads=settings["n_head"],
        d_ff=settings.get("n_inner") or 4 * settings["n_embd"],
        max_len=settings.get("n_positions", 1024),
        norm_eps=settings.get("layer_norm_epsilon", 1e-5),
        tie_word_embeddings=settings.get("tie_word_embeddings", True),
        init_std=settings.get("initializer_range", 0.02),
        dropout=settings.get("resid_pdrop", 0.1),
        head=head_of(settings, HF_ARCHITECTURES),
        n_labels=n_labels(settings),
    )
