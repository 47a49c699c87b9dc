"""GPT-NeoX and Pythia: layer norm, partly rotary positions, attention and feed-forward side by side.

Black et al. 2022 (GPT-NeoX-20B), Biderman et al. 2023 (Pythia).
"""

from __future__ import annotations

import math
from typing import Any, Literal

from torch import nn

from ..base.config import Count, Settings
from ..nn.activation import ACTIVATIONS
from ..nn.arithmetic import Shape
from ..nn.attention import Attention
from ..nn.feedforward import FeedForward
from ..nn.masks import Causal
from ..nn.mixing import Softmax
from ..nn.norm import LayerNorm
from ..nn.position import Rotary, frequencies
from ..nn.stack import Block, ParallelBlock, Stack
from ..nn.stems import Tokens
from ..nn.transformer import Transformer
from ._fresh import initialise
from ._gpt_shaped import TENSOR_PLAN, reader
from ._stored import (
    PerHead,
    Stored,
    chosen,
    head_of,
    idle,
    labels,
    missing,
    n_labels,
    need,
    per_layer,
    rope,
    unprefixed,
    with_bias,
)

__all__ = ["TENSOR_PLAN"]
HF_MODEL_TYPE = "gpt_neox"
HF_ARCHITECTURES = {
    "GPTNeoXForCausalLM": "language",
    "GPTNeoXModel": "none",
    "GPTNeoXForSequenceClassification": "classes",
}


class Config(Settings):
    """Shape of a GPT-NeoX model."""

    vocab_size: Count
    """Number of words."""
    d_model: int
    """Width of the residual stream."""
    n_layers: int
    """Number of blocks."""
    n_heads: int
    """Attention heads; d_model must be a multiple of it."""
    d_ff: int
    """Inner width of the feed-forward part."""
    max_len: Count = 2048
    """Longest text in tokens that the model is meant for."""
    rope_theta: float = 10_000.0
    """Base of the rotary frequencies."""
    rotary_share: float = 0.25
    """Share of a head's dimensions that are turned; the others carry no position."""
    parallel: bool = True
    """Attention and feed-forward read the same input and are added at once; one after the other if not."""
    activation: str = "gelu"
    """Activation of the feed-forward part, by Hugging Face's name."""
    attention_bias: bool = True
    """The four matrices of attention have biases."""
    norm_eps: float = 1e-5
    """Added to the variance in layer norm."""
    tie_word_embeddings: bool = False
    """The head reads with the embedding's own matrix."""
    init_std: float = 0.02
    """Standard deviation of fresh weights; 2 / (n_layers sqrt(d_model)) where they write to the residual stream."""
    dropout: float = 0.0
    """Share dropped from embeddings, attention and residual branches, in training only."""
    head: Literal["language", "none", "classes"] = "language"
    """What reads the stack out: scores of the next word, nothing, or scores of classes from the last token."""
    n_labels: int = 2
    """Classes, where head is 'classes'."""


def _published(d_model: int, n_layers: int, n_heads: int, vocab_size: int = 50_304, **other: Any) -> Config:
    """The vocabulary has 50,254 words and grows until it divides among the devices that trained the model."""
    return Config(vocab_size=vocab_size, d_model=d_model, n_layers=n_layers, n_heads=n_heads, d_ff=4 * d_model, **other)


PRESETS = {
    "pythia-14m": _published(128, 6, 4),
    "pythia-31m": _published(256, 6, 8),
    "pythia-70m": _published(512, 6, 8),
    "pythia-160m": _published(768, 12, 12),
    "pythia-410m": _published(1024, 24, 16),
    "pythia-1b": _published(2048, 16, 8),
    "pythia-1.4b": _published(2048, 24, 16),
    "pythia-2.8b": _published(2560, 32, 32),
    "pythia-6.9b": _published(4096, 32, 32, vocab_size=50_432),
    "pythia-12b": _published(5120, 36, 40, vocab_size=50_688),
    "gpt-neox-20b": _published(6144, 44, 64, vocab_size=50_432, activation="gelu_fast"),
}


def build(config: Config) -> Transformer:
    """The model with fresh weights, on torch's current device."""
    c = config
    mask = Causal()
    rotary = Rotary(frequencies(int(c.d_model // c.n_heads * c.rotary_share), c.rope_theta))
    blocks = [_block(c, layer, mask, rotary) for layer in range(c.n_layers)]
    words = nn.Embedding(c.vocab_size, c.d_model)
    stack = Stack(blocks, LayerNorm(c.d_model, c.norm_eps))
    model = Transformer(Tokens(words, c.dropout), stack, reader(c, words))
    initialise(model, c.init_std, writers=2 / (c.n_layers * math.sqrt(c.d_model)))
    return model


def _block(config: Config, layer: int, mask: nn.Module, position: nn.Module) -> Block:
    c = config
    matrices = {
        part: nn.Linear(c.d_model, c.d_model, bias=c.attention_bias) for part in ("query", "key", "value", "out")
    }
    attention = Attention(
        **matrices, d_head=c.d_model // c.n_heads, layer=layer, mask=mask, position=position,
        mixer=Softmax(dropout=c.dropout),
    )  # fmt: skip
    activation = chosen(ACTIVATIONS, c.activation, "hidden_act", HF_MODEL_TYPE)
    feedforward = FeedForward(nn.Linear(c.d_model, c.d_ff), nn.Linear(c.d_ff, c.d_model), activation)
    kind = ParallelBlock if c.parallel else Block
    norms = LayerNorm(c.d_model, c.norm_eps), LayerNorm(c.d_model, c.norm_eps)
    return kind(norms[0], attention, norms[1], feedforward, c.dropout)


def shape(config: Config) -> Shape:
    """What `nn.arithmetic` needs to know."""
    c = config
    return Shape(
        vocab_size=c.vocab_size, d_model=c.d_model, n_layers=c.n_layers, n_heads=c.n_heads, n_kv_heads=c.n_heads,
        d_head=c.d_model // c.n_heads, d_ff=c.d_ff, feedforward_matrices=2,
        tied=c.tie_word_embeddings or c.head != "language",
        other_matrices=c.n_labels * c.d_model if c.head == "classes" else 0,
        vectors_per_layer=(9 if c.attention_bias else 5) * c.d_model + c.d_ff, other_vectors=2 * c.d_model,
    )  # fmt: skip


HF_PREFIX = "gpt_neox."
"""What stands before the names of all but the head, and is left out where there is no head."""
HF_OLDER = {"embed_out.weight": "lm_head.weight"}
"""The head's matrix as `transformers` 5 has it in memory; on disk it keeps the published name."""
HF_IGNORED = (r".*\.attention\.bias", r".*\.attention\.masked_bias", r".*rotary_emb\.inv_freq")
"""Tensors of older files that carry nothing learned: the causal mask and the frequencies."""


def hf_names(config: Config) -> dict[str, Stored]:
    """Our parameter names and where each stands in a Hugging Face file."""
    c = config
    layer = with_bias({
        "attention_norm": "input_layernorm", "feedforward_norm": "post_attention_layernorm",
        "feedforward.up": "mlp.dense_h_to_4h", "feedforward.down": "mlp.dense_4h_to_h",
    })  # fmt: skip
    for kind in ("weight", "bias") if c.attention_bias else ("weight",):
        layer[f"attention.out.{kind}"] = Stored(f"attention.dense.{kind}")
        for number, part in enumerate(("query", "key", "value")):
            cut = PerHead(c.n_heads, 3)
            layer[f"attention.{part}.{kind}"] = Stored(f"attention.query_key_value.{kind}", part=number, cut=cut)
    patterns = {"stem.tokens.weight": Stored("gpt_neox.embed_in.weight")}
    patterns |= {f"stack.blocks.{{}}.{ours}": place.moved("gpt_neox.layers.{}.") for ours, place in layer.items()}
    patterns |= {f"stack.norm.{kind}": Stored(f"gpt_neox.final_layer_norm.{kind}") for kind in ("weight", "bias")}
    if c.head == "language" and not c.tie_word_embeddings:
        patterns["head.projection.weight"] = Stored("embed_out.weight")
    elif c.head == "classes":
        patterns["head.projection.weight"] = Stored("score.weight")
    found = per_layer(patterns, c.n_layers)
    return unprefixed(found, HF_PREFIX) if c.head == "none" else found


def hf_tied(config: Config) -> dict[str, str]:
    """Copies that some files hold of a tensor, and the name of the original."""
    tied = config.tie_word_embeddings and config.head == "language"
    return dict.fromkeys(("embed_out.weight", "lm_head.weight"), "gpt_neox.embed_in.weight") if tied else {}


def to_hf(config: Config) -> dict[str, Any]:
    """The settings as `transformers` names them, positions in the old spelling too."""
    c = config
    return labels(c) | {
        "model_type": HF_MODEL_TYPE,
        "vocab_size": c.vocab_size,
        "hidden_size": c.d_model,
        "num_hidden_layers": c.n_layers,
        "num_attention_heads": c.n_heads,
        "intermediate_size": c.d_ff,
        "max_position_embeddings": c.max_len,
        "rotary_pct": c.rotary_share,
        "rotary_emb_base": c.rope_theta,
        "rope_parameters": {
            "rope_type": "default", "rope_theta": c.rope_theta, "partial_rotary_factor": c.rotary_share,
        },
        "use_parallel_residual": c.parallel,
        "hidden_act": c.activation,
        "attention_bias": c.attention_bias,
        "layer_norm_eps": c.norm_eps,
        "tie_word_embeddings": c.tie_word_embeddings,
        "initializer_range": c.init_std,
        "attention_dropout": c.dropout,
        "hidden_dropout": c.dropout,
    }  # fmt: skip


def from_hf(settings: dict[str, Any]) -> Config:
    """Our settings from `transformers`' (both spellings of rotary positions). Raises UserError for what we lack."""
    missing(settings, ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"))
    rule = settings.get("rope_scaling") or settings.get("rope_parameters") or {}
    need(rope(settings), HF_MODEL_TYPE, {"rope_type": ("default",)})
    old = settings.get("rotary_emb_base", settings.get("rope_theta", 10_000.0)), settings.get("rotary_pct", 0.25)
    chosen(ACTIVATIONS, settings.get("hidden_act", "gelu"), "hidden_act", HF_MODEL_TYPE)
    idle(settings, "is_decoder")
    found: dict[str, Any] = {
        "vocab_size": settings["vocab_size"],
        "d_model": settings["hidden_size"],
        "n_layers": settings["num_hidden_layers"],
        "n_heads": settings["num_attention_heads"],
        "d_ff": settings["intermediate_size"],
        "max_len": settings.get("max_position_embeddings", 2048),
        "rope_theta": rule.get("rope_theta", old[0]),
        "rotary_share": rule.get("partial_rotary_factor", old[1]),
        "parallel": settings.get("use_parallel_residual", True),
        "activation": settings.get("hidden_act", "gelu"),
        "attention_bias": settings.get("attention_bias", True),
        "norm_eps": settings.get("layer_norm_eps", 1e-5),
        "tie_word_embeddings": settings.get("tie_word_embeddings", False),
        "init_std": settings.get("initializer_range", 0.02),
        "dropout": settings.get("hidden_dropout", 0.0),
        "head": head_of(settings, HF_ARCHITECTURES),
    }
    if found["head"] == "classes":
        found["n_labels"] = n_labels(settings)
    return Config(**found)
