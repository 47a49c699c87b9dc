"""Qwen3: RMSNorm, rotary positions, grouped-query attention with QK-norm, SwiGLU (Qwen3 Technical Report, 2025)."""

from __future__ import annotations

from typing import Any

from ..base.config import Count
from ..nn.arithmetic import Shape
from ..nn.masks import Causal
from ..nn.mixing import Softmax
from ..nn.norm import RMSNorm
from ..nn.position import Rotary, frequencies
from ..nn.transformer import Transformer
from . import _llama_shaped as llama_shaped
from ._llama_shaped import HF_IGNORED, HF_PREFIX, NAMES, TENSOR_PLAN, LlamaShaped, hf_tied
from ._stored import Stored, need, rope, unwindowed

__all__ = ["HF_IGNORED", "HF_PREFIX", "TENSOR_PLAN", "hf_tied"]
HF_MODEL_TYPE = "qwen3"
HF_ARCHITECTURES = llama_shaped.architectures("Qwen3")


class Config(LlamaShaped):
    """Shape of a Qwen3 model."""

    max_len: Count = 40960
    """Longest text in tokens that the model is meant for."""
    rope_theta: float = 1_000_000.0
    """Base of the rotary frequencies."""
    tie_word_embeddings: bool = True
    """The head reads with the embedding's own matrix."""


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
    mask, rotary = Causal(), Rotary(frequencies(c.d_head, c.rope_theta))

    def attention(layer: int) -> Any:
        return llama_shaped.attention(
            c, layer, mask=mask, position=rotary, mixer=Softmax(dropout=c.dropout),
            query_norm=RMSNorm(c.d_head, c.norm_eps), key_norm=RMSNorm(c.d_head, c.norm_eps),
        )  # fmt: skip

    return llama_shaped.assemble(
        c,
        lambda layer: llama_shaped.block(c, attention(layer), llama_shaped.gated(c)),
        RMSNorm(c.d_model, c.norm_eps),
    )


def shape(config: Config) -> Shape:
    """What `nn.arithmetic` needs to know."""
    return llama_shaped.shape(config, vectors_per_layer=2 * config.d_model + 2 * config.d_head, head_norms=True)


def hf_names(config: Config) -> dict[str, Stored]:
    """Our parameter names and where each stands in a Hugging Face file."""
    norms = {f"attention.{kind}_norm.weight": f"self_attn.{kind[0]}_norm.weight" for kind in ("query", "key")}
    return llama_shaped.hf_names(config, NAMES | norms)


def to_hf(config: Config) -> dict[str, Any]:
    """The settings as `transformers` names them."""
    return llama_shaped.to_hf(
        config, HF_MODEL_TYPE, attention_bias=False, use_sliding_window=False, sliding_window=None
    )


def from_hf(settings: dict[str, Any]) -> Config:
    """Our settings from `transformers`' (both spellings of the rotary base). Raises UserError for what we do not do."""
    need(settings, HF_MODEL_TYPE, {"hidden_act": ("silu",), "attention_bias": (False,)})
    unwindowed(settings, HF_MODEL_TYPE)
    need(rope(settings), HF_MODEL_TYPE, {"rope_type": ("default",)})
    d_head = settings.get("head_dim") or 128
    return llama_shaped.from_hf(Config, settings, HF_ARCHITECTURES, d_head=d_head)
