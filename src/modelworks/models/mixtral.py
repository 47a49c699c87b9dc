"""Mixtral: Mistral's blocks with eight experts each, of which two serve a token (Jiang et al. 2024)."""

from __future__ import annotations

from typing import Any

from ..base.config import Count
from ..nn.arithmetic import Shape
from ..nn.experts import shares_of_chosen
from ..nn.masks import Causal
from ..nn.mixing import Softmax
from ..nn.norm import RMSNorm
from ..nn.transformer import Transformer
from . import _llama_shaped as llama_shaped
from . import _mixtures as mixtures
from . import _rope
from ._llama_shaped import HF_IGNORED, HF_PREFIX, hf_tied
from ._mixtures import Mixture
from ._rope import Scaling
from ._stored import Stored, need

__all__ = ["HF_IGNORED", "HF_PREFIX", "hf_tied"]
HF_MODEL_TYPE = "mixtral"
HF_ARCHITECTURES = llama_shaped.architectures("Mixtral")


class Config(Mixture):
    """Shape of a Mixtral model."""

    n_experts: Count = 8
    """Experts in each block."""
    max_len: Count = 32_768
    """Longest text in tokens that the model is meant for."""
    rope_theta: float = 1_000_000.0
    """Base of the rotary frequencies."""
    norm_eps: float = 1e-5
    """Added to the mean square in RMSNorm."""
    window: int | None = None
    """How many tokens each token sees, itself included; all earlier ones unless given."""
    rope_scaling: Scaling | None = None
    """How rotary positions are stretched: linear, llama3 or yarn; none unless given."""


def _published(vocab_size: int, d_model: int, n_layers: int, n_heads: int, d_ff: int, max_len: int) -> Config:
    return Config(
        vocab_size=vocab_size, d_model=d_model, n_layers=n_layers, n_heads=n_heads, n_kv_heads=8, d_head=128,
        d_ff=d_ff, max_len=max_len, balance=0.02 if d_model == 4096 else 0.001,
    )  # fmt: skip


PRESETS = {
    "mixtral-nano": Config(
        vocab_size=4096, d_model=128, n_layers=4, n_heads=4, n_kv_heads=2, d_head=32, d_ff=192, max_len=4096,
        rope_theta=10_000.0, tie_word_embeddings=True, balance=0.01,
    ),
    "mixtral-8x7b": _published(32_000, 4096, 32, 32, 14336, 32_768),
    "mixtral-8x22b": _published(32_768, 6144, 56, 48, 16384, 65_536),
}  # fmt: skip


def build(config: Config) -> Transformer:
    """The model with fresh weights, on torch's current device."""
    c = config
    mask, rotary = Causal(c.window), _rope.rotary(c.d_head, c.rope_theta, c.rope_scaling)

    def block(layer: int) -> Any:
        mixer = Softmax(dropout=c.dropout)
        attention = llama_shaped.attention(c, layer, mask=mask, position=rotary, mixer=mixer)
        return mixtures.block(c, attention, mixtures.experts(c, shares_of_chosen))

    return llama_shaped.assemble(c, block, RMSNorm(c.d_model, c.norm_eps))


def shape(config: Config) -> Shape:
    """What `nn.arithmetic` needs to know."""
    return mixtures.shape(config, windows=(config.window,) * config.n_layers if config.window else ())


def hf_names(config: Config) -> dict[str, Stored]:
    """Our parameter names and where each stands in a Hugging Face file."""
    expert = "block_sparse_moe.experts.{{}}"
    names = mixtures.names(
        config, "block_sparse_moe.gate.weight", f"{expert}.w1.weight", f"{expert}.w3.weight", f"{expert}.w2.weight"
    )
    return llama_shaped.hf_names(config, names)


def to_hf(config: Config) -> dict[str, Any]:
    """The settings as `transformers` names them."""
    c = config
    return llama_shaped.to_hf(
        c, HF_MODEL_TYPE, num_local_experts=c.n_experts, sliding_window=c.window, **mixtures.to_hf(c),
        **_rope.to_hf(c.rope_theta, c.rope_scaling),
    )  # fmt: skip


def from_hf(settings: dict[str, Any]) -> Config:
    """Our settings from `transformers`'. Raises UserError for what we do not do."""
    need(settings, HF_MODEL_TYPE, {"hidden_act": ("silu",)})
    return llama_shaped.from_hf(
        Config, settings, HF_ARCHITECTURES, n_experts=settings.get("num_local_experts", 8),
        window=settings.get("sliding_window"), rope_scaling=_rope.from_hf(settings, HF_MODEL_TYPE),
        n_kv_heads=settings.get("num_key_value_heads", 8) or settings["num_attention_heads"],
        **mixtures.from_hf(settings, n_active=2),
    )  # fmt: skip
