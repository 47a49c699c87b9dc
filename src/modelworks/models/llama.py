"""Llama 2 and 3: RMSNorm, rotary positions, grouped-query attention, SwiGLU (Touvron et al. 2023; Llama Team 2024)."""

from __future__ import annotations

from typing import Any

from ..nn.arithmetic import Shape
from ..nn.feedforward import GatedFeedForward
from ..nn.masks import Causal
from ..nn.mixing import Softmax
from ..nn.norm import RMSNorm
from ..nn.transformer import Transformer
from . import _llama_shaped as llama_shaped
from . import _rope
from ._llama_shaped import HF_IGNORED, HF_PREFIX, NAMES, TENSOR_PLAN, LlamaShaped, hf_tied
from ._rope import Llama3, Scaling
from ._stored import Stored, need

__all__ = ["HF_IGNORED", "HF_PREFIX", "TENSOR_PLAN", "hf_tied"]
HF_MODEL_TYPE = "llama"
HF_ARCHITECTURES = llama_shaped.architectures("Llama")


class Config(LlamaShaped):
    """Shape of a Llama model."""

    norm_eps: float = 1e-5
    """Added to the mean square in RMSNorm."""
    rope_scaling: Scaling | None = None
    """How rotary positions are stretched: linear, llama3 or yarn; none unless given."""
    attention_bias: bool = False
    """The four matrices of attention have biases."""
    mlp_bias: bool = False
    """The three matrices of the feed-forward part have biases."""


def _own(d_model: int, n_heads: int, d_ff: int) -> Config:
    """A small model of ours that trains on two cores: heads of 32, 4096 words until told."""
    return Config(
        vocab_size=4096, d_model=d_model, n_layers=4, n_heads=n_heads, n_kv_heads=2, d_head=32, d_ff=d_ff,
        tie_word_embeddings=True,
    )  # fmt: skip


def _second(d_model: int, n_layers: int, n_heads: int, d_ff: int, n_kv_heads: int = 0) -> Config:
    return Config(
        vocab_size=32_000, d_model=d_model, n_layers=n_layers, n_heads=n_heads, n_kv_heads=n_kv_heads or n_heads,
        d_head=128, d_ff=d_ff,
    )  # fmt: skip


def _third(d_model: int, n_layers: int, n_heads: int, d_ff: int, stretched: float = 0.0, **other: Any) -> Config:
    """Llama 3, or 3.1 and 3.2 where positions are `stretched` so many times."""
    fields: dict[str, Any] = {"d_head": 128, "max_len": 131_072 if stretched else 8192} | other
    return Config(
        vocab_size=128_256, d_model=d_model, n_layers=n_layers, n_heads=n_heads, n_kv_heads=8, d_ff=d_ff,
        rope_theta=500_000.0, rope_scaling=Llama3(factor=stretched) if stretched else None, **fields,
    )  # fmt: skip


PRESETS = {
    "llama-nano": _own(128, 4, 320),
    "llama-micro": _own(192, 6, 512),
    "llama2-7b": _second(4096, 32, 32, 11008),
    "llama2-13b": _second(5120, 40, 40, 13824),
    "llama2-70b": _second(8192, 80, 64, 28672, n_kv_heads=8),
    "llama3-8b": _third(4096, 32, 32, 14336),
    "llama3-70b": _third(8192, 80, 64, 28672),
    "llama3.1-8b": _third(4096, 32, 32, 14336, stretched=8.0),
    "llama3.1-70b": _third(8192, 80, 64, 28672, stretched=8.0),
    "llama3.1-405b": _third(16384, 126, 128, 53248, stretched=8.0),
    "llama3.2-1b": _third(2048, 16, 32, 8192, stretched=32.0, d_head=64, tie_word_embeddings=True),
    "llama3.2-3b": _third(3072, 28, 24, 8192, stretched=32.0, tie_word_embeddings=True),
}


def build(config: Config) -> Transformer:
    """The model with fresh weights, on torch's current device."""
    c = config
    mask, rotary = Causal(), _rope.rotary(c.d_head, c.rope_theta, c.rope_scaling)

    def block(layer: int) -> Any:
        attention = llama_shaped.attention(
            c, layer, mask=mask, position=rotary, mixer=Softmax(dropout=c.dropout),
            bias=c.attention_bias, out_bias=c.attention_bias,
        )  # fmt: skip
        return llama_shaped.block(c, attention, _feedforward(c))

    return llama_shaped.assemble(c, block, RMSNorm(c.d_model, c.norm_eps))


def _feedforward(config: Config) -> GatedFeedForward:
    part = llama_shaped.gated(config)
    if config.mlp_bias:
        c, matrix = config, llama_shaped.matrix
        part.gate, part.up = matrix(c.d_model, c.d_ff, bias=True), matrix(c.d_model, c.d_ff, bias=True)
        part.down = matrix(c.d_ff, c.d_model, bias=True)
    return part


def shape(config: Config) -> Shape:
    """What `nn.arithmetic` needs to know."""
    c = config
    vectors = 2 * c.d_model
    if c.attention_bias:
        vectors += (c.n_heads + 2 * c.n_kv_heads) * c.d_head + c.d_model
    if c.mlp_bias:
        vectors += 2 * c.d_ff + c.d_model
    return llama_shaped.shape(config, vectors_per_layer=vectors)


def hf_names(config: Config) -> dict[str, Stored]:
    """Our parameter names and where each stands in a Hugging Face file."""
    biased = ("attention.",) * config.attention_bias + ("feedforward.",) * config.mlp_bias
    biases = {
        ours.replace(".weight", ".bias"): theirs.replace(".weight", ".bias")
        for ours, theirs in NAMES.items()
        if ours.startswith(biased)
    }
    return llama_shaped.hf_names(config, NAMES | biases)


def to_hf(config: Config) -> dict[str, Any]:
    """The settings as `transformers` names them."""
    c = config
    own = {"attention_bias": c.attention_bias, "mlp_bias": c.mlp_bias}
    return llama_shaped.to_hf(config, HF_MODEL_TYPE, **own, **_rope.to_hf(c.rope_theta, c.rope_scaling))


def from_hf(settings: dict[str, Any]) -> Config:
    """Our settings from `transformers`' (both spellings of rotary positions). Raises UserError for what we lack."""
    need(settings, HF_MODEL_TYPE, {"hidden_act": ("silu",)})
    return llama_shaped.from_hf(
        Config, settings, HF_ARCHITECTURES, rope_scaling=_rope.from_hf(settings, HF_MODEL_TYPE),
        attention_bias=settings.get("attention_bias", False), mlp_bias=settings.get("mlp_bias", False),
    )  # fmt: skip
