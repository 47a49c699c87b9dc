"""Qwen3: RMSNorm, rotary positions, grouped-query attention with QK-norm, SwiGLU (Qwen3 Technical Report, 2025)."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn import functional as F

from ..base.config import Count, Settings
from ..nn.arithmetic import Shape
from ..nn.attention import Attention, Causal
from ..nn.feedforward import GatedFeedForward
from ..nn.heads import LanguageHead
from ..nn.norm import RMSNorm
from ..nn.position import Rotary
from ..nn.stack import Block, Stack
from ..nn.stems import Tokens
from ..nn.transformer import Transformer
from ._stored import Stored, missing, need, per_layer

HF_ARCHITECTURE = "Qwen3ForCausalLM"


class Config(Settings):
    """Shape of a Qwen3 model."""

    vocab_size: Count
    """Number of words."""
    d_model: int
    """Width of the residual stream."""
    n_layers: int
    """Number of blocks."""
    n_heads: int
    """Query heads."""
    n_kv_heads: int
    """Key and value heads; n_heads must be a multiple of it."""
    d_head: int
    """Width of a head; even."""
    d_ff: int
    """Inner width of the feed-forward part."""
    max_len: Count = 40960
    """Longest text in tokens that the model is meant for."""
    rope_theta: float = 1_000_000.0
    """Base of the rotary frequencies."""
    norm_eps: float = 1e-6
    """Added to the mean square in RMSNorm."""
    tie_word_embeddings: bool = True
    """The head reads with the embedding's own matrix."""
    init_std: float = 0.02
    """Standard deviation of fresh weights; the matrices that write to the residual stream start at zero."""
    dropout: float = 0.0
    """Share dropped from embeddings, attention and residual branches, in training only."""


def _own(d_model: int, n_layers: int, n_heads: int, n_kv_heads: int, d_ff: int) -> Config:
    """A small model of ours: heads of 64 (32 in the narrowest), theta for short texts, 4096 words until told."""
    return Config(
        vocab_size=4096, d_model=d_model, n_layers=n_layers, n_heads=n_heads, n_kv_heads=n_kv_heads,
        d_head=32 if d_model < 256 else 64, d_ff=d_ff, max_len=4096, rope_theta=10_000.0,
    )  # fmt: skip


def _published(d_model: int, n_layers: int, n_heads: int, d_ff: int, tied: bool = False, n_kv_heads: int = 8) -> Config:
    return Config(
        vocab_size=151_936, d_model=d_model, n_layers=n_layers, n_heads=n_heads, n_kv_heads=n_kv_heads,
        d_head=128, d_ff=d_ff, tie_word_embeddings=tied,
    )  # fmt: skip


PRESETS = {
    "qwen3-nano": _own(128, 4, 4, 2, 320),
    "qwen3-micro": _own(192, 4, 6, 2, 512),
    "qwen3-mini": _own(384, 6, 6, 2, 1024),
    "qwen3-small": _own(512, 10, 8, 4, 1408),
    "qwen3-base": _own(768, 12, 12, 4, 2048),
    "qwen3-0.6b": _published(1024, 28, 16, 3072, tied=True),
    "qwen3-1.7b": _published(2048, 28, 16, 6144, tied=True),
    "qwen3-4b": _published(2560, 36, 32, 9728, tied=True),
    "qwen3-8b": _published(4096, 36, 32, 12288),
    "qwen3-14b": _published(5120, 40, 40, 17408),
    "qwen3-32b": _published(5120, 64, 64, 25600),
}


def build(config: Config) -> Transformer:
    """The model with fresh weights, on torch's current device."""
    c = config
    mask, rotary = Causal(), Rotary(c.d_head, c.rope_theta)

    def block(layer: int) -> Block:
        attention = Attention(
            query=_matrix(c.d_model, c.n_heads * c.d_head),
            key=_matrix(c.d_model, c.n_kv_heads * c.d_head),
            value=_matrix(c.d_model, c.n_kv_heads * c.d_head),
            out=_matrix(c.n_heads * c.d_head, c.d_model),
            d_head=c.d_head,
            layer=layer,
            mask=mask,
            position=rotary,
            query_norm=RMSNorm(c.d_head, c.norm_eps),
            key_norm=RMSNorm(c.d_head, c.norm_eps),
            dropout=c.dropout,
        )
        feedforward = GatedFeedForward(
            _matrix(c.d_model, c.d_ff), _matrix(c.d_model, c.d_ff), _matrix(c.d_ff, c.d_model), F.silu
        )
        return Block(RMSNorm(c.d_model, c.norm_eps), attention, RMSNorm(c.d_model, c.norm_eps), feedforward, c.dropout)

    embedding = nn.Embedding(c.vocab_size, c.d_model)
    head = _matrix(c.d_model, c.vocab_size)
    if c.tie_word_embeddings:
        head.weight = embedding.weight
    stack = Stack([block(layer) for layer in range(c.n_layers)], RMSNorm(c.d_model, c.norm_eps))
    model = Transformer(Tokens(embedding, c.dropout), stack, LanguageHead(head))
    _initialise(model, c.init_std)
    return model


def _matrix(inputs: int, outputs: int) -> nn.Linear:
    return nn.Linear(inputs, outputs, bias=False)


def _initialise(model: Transformer, std: float) -> None:
    """Normal weights; what writes to the residual stream starts at zero, so each block starts as identity.

    (Zero-initialised branches, Zhang et al. 2019, Fixup: training is stable from the first step without a
    long warm-up, which is what a budget of minutes needs.)
    """
    for name, weight in model.named_parameters():
        if name.endswith(("attention.out.weight", "feedforward.down.weight")):
            nn.init.zeros_(weight)
        elif weight.dim() == 2:
            nn.init.normal_(weight, std=std)


def shape(config: Config) -> Shape:
    """What `nn.arithmetic` needs to know."""
    c = config
    return Shape(
        vocab_size=c.vocab_size, d_model=c.d_model, n_layers=c.n_layers, n_heads=c.n_heads,
        n_kv_heads=c.n_kv_heads, d_head=c.d_head, d_ff=c.d_ff, feedforward_matrices=3, tied=c.tie_word_embeddings,
        vectors_per_layer=2 * c.d_model + 2 * c.d_head, other_vectors=c.d_model,
    )  # fmt: skip


_LAYER = {
    "attention_norm": "input_layernorm",
    "attention.query": "self_attn.q_proj",
    "attention.key": "self_attn.k_proj",
    "attention.value": "self_attn.v_proj",
    "attention.out": "self_attn.o_proj",
    "attention.query_norm": "self_attn.q_norm",
    "attention.key_norm": "self_attn.k_norm",
    "feedforward_norm": "post_attention_layernorm",
    "feedforward.gate": "mlp.gate_proj",
    "feedforward.up": "mlp.up_proj",
    "feedforward.down": "mlp.down_proj",
}
HF_NAMES = {
    "stem.tokens.weight": Stored("model.embed_tokens.weight"),
    "stack.norm.weight": Stored("model.norm.weight"),
    "head.projection.weight": Stored("lm_head.weight"),
} | {
    f"stack.blocks.{{}}.{ours}.weight": Stored(f"model.layers.{{}}.{theirs}.weight") for ours, theirs in _LAYER.items()
}
HF_PREFIX = ""
"""What some files leave out at the start of their names."""
HF_IGNORED = (r".*rotary_emb\.inv_freq",)
"""Tensors of older files that carry nothing learned."""


def hf_names(config: Config) -> dict[str, Stored]:
    """Our parameter names and where each stands in a Hugging Face file."""
    names = per_layer(HF_NAMES, config.n_layers)
    if config.tie_word_embeddings:
        del names["head.projection.weight"]
    return names


def to_hf(config: Config) -> dict[str, Any]:
    """The settings as `transformers` names them."""
    c = config
    return {
        "model_type": "qwen3",
        "vocab_size": c.vocab_size,
        "hidden_size": c.d_model,
        "num_hidden_layers": c.n_layers,
        "num_attention_heads": c.n_heads,
        "num_key_value_heads": c.n_kv_heads,
        "head_dim": c.d_head,
        "intermediate_size": c.d_ff,
        "max_position_embeddings": c.max_len,
        "rope_theta": c.rope_theta,
        "rope_scaling": None,
        "rope_parameters": {"rope_type": "default", "rope_theta": c.rope_theta},
        "rms_norm_eps": c.norm_eps,
        "tie_word_embeddings": c.tie_word_embeddings,
        "initializer_range": c.init_std,
        "attention_dropout": c.dropout,
        "hidden_act": "silu",
        "attention_bias": False,
        "use_sliding_window": False,
        "sliding_window": None,
    }


def from_hf(settings: dict[str, Any]) -> Config:
    """Our settings from `transformers`' (both spellings of the rotary base). Raises UserError for what we do not do."""
    need(
        settings,
        "qwen3",
        {"hidden_act": ("silu",), "attention_bias": (False,), "use_sliding_window": (False, None),
         "rope_scaling": (None,)},
    )  # fmt: skip
    rope = settings.get("rope_parameters") or {}
    need(rope, "qwen3", {"rope_type": ("default",)})
    missing(settings, ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"))
    n_heads = settings["num_attention_heads"]
    return Config(
        vocab_size=settings["vocab_size"],
        d_model=settings["hidden_size"],
        n_layers=settings["num_hidden_layers"],
        n_heads=n_heads,
        n_kv_heads=settings.get("num_key_value_heads") or n_heads,
        d_head=settings.get("head_dim") or 128,
        d_ff=settings["intermediate_size"],
        max_len=settings.get("max_position_embeddings", 32768),
        rope_theta=rope.get("rope_theta") or settings.get("rope_theta", 10_000.0),
        norm_eps=settings.get("rms_norm_eps", 1e-6),
        tie_word_embeddings=settings.get("tie_word_embeddings", False),
        init_std=settings.get("initializer_range", 0.02),
        dropout=settings.get("attention_dropout", 0.0),
    )
