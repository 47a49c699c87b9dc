"""GPT-1: GPT-2's parts with the norms behind them and none at the end (Radford et al. 2018)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from torch import nn

from ..base.config import Count, Settings
from ..nn.activation import tanh_gelu
from ..nn.arithmetic import Shape
from ..nn.masks import Causal
from ..nn.stack import PostNormBlock, Stack
from ..nn.stems import PositionedTokens
from ..nn.transformer import Transformer
from . import _gpt_shaped as gpt_shaped
from ._fresh import initialise
from ._stored import Equal, Stored, head_of, idle, labels, missing, n_labels, need, per_layer, unprefixed, with_bias

HF_MODEL_TYPE = "openai-gpt"
HF_ARCHITECTURES = {
    "OpenAIGPTLMHeadModel": "language",
    "OpenAIGPTModel": "none",
    "OpenAIGPTForSequenceClassification": "classes",
}


class Config(Settings):
    """Shape of a GPT-1 model; the feed-forward part is four times as wide as the stream."""

    vocab_size: Count = 40_478
    """Number of words."""
    d_model: int
    """Width of the residual stream."""
    n_layers: int
    """Number of blocks."""
    n_heads: int
    """Attention heads; d_model must be a multiple of it."""
    max_len: Count = 512
    """Positions that the model has."""
    norm_eps: float = 1e-5
    """Added to the variance in layer norm."""
    tie_word_embeddings: bool = True
    """The head reads with the embedding's own matrix."""
    init_std: float = 0.02
    """Standard deviation of fresh weights."""
    dropout: float = 0.1
    """Share dropped from embeddings, attention and residual branches, in training only."""
    head: Literal["language", "none", "classes"] = "language"
    """What reads the stack out: scores of the next word, nothing, or scores of classes from the last token."""
    n_labels: int = 2
    """Classes, where head is 'classes'."""


PRESETS = {"openai-gpt": Config(d_model=768, n_layers=12, n_heads=12)}


def build(config: Config) -> Transformer:
    """The model with fresh weights, on torch's current device."""
    c = config
    mask = Causal()
    blocks = [
        gpt_shaped.block(
            layer, d_model=c.d_model, n_heads=c.n_heads, d_ff=4 * c.d_model, mask=mask, activation=tanh_gelu,
            eps=c.norm_eps, dropout=c.dropout, kind=PostNormBlock,
        )
        for layer in range(c.n_layers)
    ]  # fmt: skip
    words = nn.Embedding(c.vocab_size, c.d_model)
    stem = PositionedTokens(words, nn.Embedding(c.max_len, c.d_model), c.dropout)
    model = Transformer(stem, Stack(blocks, nn.Identity()), gpt_shaped.reader(c, words))
    initialise(model, c.init_std)
    return model


def shape(config: Config) -> Shape:
    """What `nn.arithmetic` needs to know."""
    c = config
    return Shape(
        vocab_size=c.vocab_size, d_model=c.d_model, n_layers=c.n_layers, n_heads=c.n_heads, n_kv_heads=c.n_heads,
        d_head=c.d_model // c.n_heads, d_ff=4 * c.d_model, feedforward_matrices=2,
        tied=c.tie_word_embeddings or c.head != "language",
        other_matrices=c.n_labels * c.d_model if c.head == "classes" else 0,
        learned_positions=c.max_len, vectors_per_layer=gpt_shaped.vectors(c.d_model, 4 * c.d_model), other_vectors=0,
    )  # fmt: skip


HF_PREFIX = "transformer."
"""What some files (the published one) leave out at the start of their names."""
HF_IGNORED = (r".*\.attn\.bias", r".*\.position_ids", r"position_ids")
"""Tensors of older files that carry nothing learned: the causal mask, the positions' numbers."""


def hf_names(config: Config) -> dict[str, Stored]:
    """Our parameter names and where each stands in a Hugging Face file; matrices are stored [in, out]."""
    layer = with_bias({
        "attention.out": "attn.c_proj", "feedforward.up": "mlp.c_fc", "feedforward.down": "mlp.c_proj",
        "attention_norm": "ln_1", "feedforward_norm": "ln_2",
    })  # fmt: skip
    for number, part in enumerate(("query", "key", "value")):
        for kind in ("weight", "bias"):
            layer[f"attention.{part}.{kind}"] = Stored(f"attn.c_attn.{kind}", part=number, cut=Equal(3, -1))
    patterns = {
        "stem.tokens.weight": Stored("transformer.tokens_embed.weight"),
        "stem.positions.weight": Stored("transformer.positions_embed.weight"),
    }
    for ours, place in layer.items():
        turned = ours.endswith("weight") and "norm" not in ours
        patterns[f"stack.blocks.{{}}.{ours}"] = replace(place.moved("transformer.h.{}."), transpose=turned)
    if config.head == "language" and not config.tie_word_embeddings:
        patterns["head.projection.weight"] = Stored("lm_head.weight")
    elif config.head == "classes":
        patterns["head.projection.weight"] = Stored("score.weight")
    found = per_layer(patterns, config.n_layers)
    return unprefixed(found, HF_PREFIX) if config.head == "none" else found


def hf_tied(config: Config) -> dict[str, str]:
    """Copies that some files hold of a tensor, and the name of the original."""
    tied = config.tie_word_embeddings and config.head == "language"
    return {"lm_head.weight": "transformer.tokens_embed.weight"} if tied else {}


def to_hf(config: Config) -> dict[str, Any]:
    """The settings as `transformers` names them; its 'gelu' of this family is the one by tanh."""
    c = config
    return labels(c) | {
        "model_type": HF_MODEL_TYPE,
        "vocab_size": c.vocab_size,
        "n_embd": c.d_model,
        "n_layer": c.n_layers,
        "n_head": c.n_heads,
        "n_positions": c.max_len,
        "layer_norm_epsilon": c.norm_eps,
        "tie_word_embeddings": c.tie_word_embeddings,
        "initializer_range": c.init_std,
        "resid_pdrop": c.dropout,
        "embd_pdrop": c.dropout,
        "attn_pdrop": c.dropout,
        "afn": "gelu",
    }


def from_hf(settings: dict[str, Any]) -> Config:
    """Our settings from `transformers`'. Raises UserError for what we do not do."""
    need(settings, HF_MODEL_TYPE, {"afn": ("gelu",), "n_special": (0,)})
    idle(settings, "n_ctx", "predict_special_tokens")  # in the published file: n_positions again, and nothing
    missing(settings, ("vocab_size", "n_embd", "n_layer", "n_head"))
    return Config(
        vocab_size=settings["vocab_size"],
        d_model=settings["n_embd"],
        n_layers=settings["n_layer"],
        n_heads=settings["n_head"],
        max_len=settings.get("n_positions", 512),
        norm_eps=settings.get("layer_norm_epsilon", 1e-5),
        tie_word_embeddings=settings.get("tie_word_embeddings", True),
        init_std=settings.get("initializer_range", 0.02),
        dropout=settings.get("resid_pdrop", 0.1),
        head=head_of(settings, HF_ARCHITECTURES),  # type: ignore[arg-type]
        n_labels=n_labels(settings),
    )
