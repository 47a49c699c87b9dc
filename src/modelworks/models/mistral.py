"""Mistral: Llama's shape, each token seeing the nearest tokens only (sliding window; Jiang et al. 2023)."""

from __future__ import annotations

from typing import Any

from ..base.config import Count
from ..nn.arithmetic import Shape
from ..nn.masks import Causal
from ..nn.mixing import Softmax
from ..nn.norm import RMSNorm
from ..nn.transformer import Transformer
from . import _llama_shaped as llama_shaped
from . import _rope
from ._llama_shaped import HF_IGNORED, HF_PREFIX, TENSOR_PLAN, LlamaShaped, hf_names, hf_tied
from ._rope import Scaling
from ._stored import need

__all__ = ["HF_IGNORED", "HF_PREFIX", "TENSOR_PLAN", "hf_names", "hf_tied"]
HF_MODEL_TYPE = "mistral"
HF_ARCHITECTURES = llama_shaped.architectures("Mistral")


class Config(LlamaShaped):
    """Shape of a Mistral model."""

    max_len: Count = 32_768
    """Longest text in tokens that the model is meant for."""
    norm_eps: float = 1e-5
    """Added to the mean square in RMSNorm."""
    window: int | None = None
    """How many tokens each token sees, itself included; all earlier ones unless given."""
    rope_scaling: Scaling | None = None
    """How rotary positions are stretched: linear, llama3 or yarn; none unless given."""


def _published(vocab_size: int, d_model: int, n_layers: int, n_heads: int, d_ff: int, **other: Any) -> Config:
    return Config(
        vocab_size=vocab_size, d_model=d_model, n_layers=n_layers, n_heads=n_heads, n_kv_heads=8, d_head=128, d_ff=d_ff,
        **{"rope_theta": 1e6} | other,
    )  # fmt: skip


PRESETS = {
    "mistral-nano": Config(
        vocab_size=4096, d_model=128, n_layers=4, n_heads=4, n_kv_heads=2, d_head=32, d_ff=320, max_len=4096,
        window=128, tie_word_embeddings=True,
    ),
    "mistral-7b-v0.1": _published(32_000, 4096, 32, 32, 14336, rope_theta=1e4, window=4096),
    "mistral-7b-v0.2": _published(32_000, 4096, 32, 32, 14336),
    "mistral-7b-v0.3": _published(32_768, 4096, 32, 32, 14336),
    "mistral-nemo-12b": _published(131_072, 5120, 40, 32, 14336, max_len=131_072),
    "mistral-small-24b": _published(131_072, 5120, 40, 32, 32768, rope_theta=1e8),
    "mistral-large-123b": _published(32_768, 12288, 88, 96, 28672, max_len=131_072),
}  # fmt: skip


def build(config: Config) -> Transformer:
    """The model with fresh weights, on torch's current device."""
    c = config
    mask, rotary = Causal(c.window), _rope.rotary(c.d_head, c.rope_theta, c.rope_scaling)

    def block(layer: int) -> Any:
        mixer = Softmax(dropout=c.dropout)
        attention = llama_shaped.attention(c, layer, mask=mask, position=rotary, mixer=mixer)
        return llama_shaped.block(c, attention, llama_shaped.gated(c))

    return llama_shaped.assemble(c, block, RMSNorm(c.d_model, c.norm_eps))


def shape(config: Config) -> Shape:
    """What `nn.arithmetic` needs to know."""
    return llama_shaped.shape(config, windows=(config.window,) * config.n_layers if config.window else ())


def to_hf(config: Config) -> dict[str, Any]:
    """The settings as `transformers` names them."""
    c = config
    return llama_shaped.to_hf(
        config, HF_MODEL_TYPE, sliding_window=c.window, **_rope.to_hf(c.rope_theta, c.rope_scaling)
    )


def from_hf(settings: dict[str, Any]) -> Config:
    """Our settings from `transformers`' (which takes a missing window for 4096). Raises UserError for what we lack."""
    need(settings, HF_MODEL_TYPE, {"hidden_act": ("silu",)})
    return llama_shaped.from_hf(
        Config, settings, HF_ARCHITECTURES, rope_scaling=_rope.from_hf(settings, HF_MODEL_TYPE),
        window=settings.get("sliding_window", 4096),
        n_kv_heads=settings.get("num_key_value_heads", 8) or settings["num_attention_heads"],
    )  # fmt: skip
