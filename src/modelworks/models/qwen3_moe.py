"""Qwen3-MoE: Qwen3's blocks with many narrow experts, of which eight serve a token (Qwen3 Technical Report, 2025)."""

from __future__ import annotations

from typing import Any

from ..base.config import Count
from ..base.errors import UserError
from ..nn.arithmetic import Shape
from ..nn.experts import shares_of_all, shares_of_chosen
from ..nn.feedforward import GatedFeedForward
from ..nn.masks import Causal
from ..nn.mixing import Softmax
from ..nn.norm import RMSNorm
from ..nn.transformer import Transformer
from . import _llama_shaped as llama_shaped
from . import _mixtures as mixtures
from . import _rope
from ._llama_shaped import HF_IGNORED, HF_PREFIX, NAMES, hf_tied
from ._mixtures import Mixture
from ._rope import Scaling
from ._stored import Stored, need, unwindowed

__all__ = ["HF_IGNORED", "HF_PREFIX", "hf_tied"]
HF_MODEL_TYPE = "qwen3_moe"
HF_ARCHITECTURES = llama_shaped.architectures("Qwen3Moe")
NORMS = {f"attention.{kind}_norm.weight": f"self_attn.{kind[0]}_norm.weight" for kind in ("query", "key")}


class Config(Mixture):
    """Shape of a Qwen3-MoE model."""

    n_active: Count = 8
    """How many of them a token passes through."""
    max_len: Count = 40_960
    """Longest text in tokens that the model is meant for."""
    rope_theta: float = 1_000_000.0
    """Base of the rotary frequencies."""
    rope_scaling: Scaling | None = None
    """How rotary positions are stretched: linear, llama3 or yarn; none unless given."""
    renormalised: bool = True
    """The shares of the chosen experts add up to 1; else they are what a softmax over all gives them."""
    dense_layers: tuple[int, ...] = ()
    """Blocks, counted from 0, with one plain feed-forward part in place of experts."""
    d_dense: int = 0
    """Inner width of those."""


def _published(d_model: int, n_layers: int, n_heads: int, d_ff: int, d_dense: int) -> Config:
    return Config(
        vocab_size=151_936, d_model=d_model, n_layers=n_layers, n_heads=n_heads, n_kv_heads=4, d_head=128,
        d_ff=d_ff, d_dense=d_dense, n_experts=128,
    )  # fmt: skip


PRESETS = {
    "qwen3-moe-nano": Config(
        vocab_size=4096, d_model=128, n_layers=4, n_heads=4, n_kv_heads=2, d_head=32, d_ff=80, n_experts=16,
        n_active=4, max_len=4096, rope_theta=10_000.0, tie_word_embeddings=True, balance=0.01,
    ),
    "qwen3-30b-a3b": _published(2048, 48, 32, 768, 6144),
    "qwen3-235b-a22b": _published(4096, 94, 64, 1536, 12288),
}  # fmt: skip


def build(config: Config) -> Transformer:
    """The model with fresh weights, on torch's current device."""
    c = config
    mask, rotary = Causal(), _rope.rotary(c.d_head, c.rope_theta, c.rope_scaling)

    def block(layer: int) -> Any:
        attention = llama_shaped.attention(
            c, layer, mask=mask, position=rotary, mixer=Softmax(dropout=c.dropout),
            query_norm=RMSNorm(c.d_head, c.norm_eps), key_norm=RMSNorm(c.d_head, c.norm_eps),
        )  # fmt: skip
        if layer in c.dense_layers:
            return llama_shaped.block(c, attention, _dense(c))
        return mixtures.block(c, attention, mixtures.experts(c, shares_of_chosen if c.renormalised else shares_of_all))

    return llama_shaped.assemble(c, block, RMSNorm(c.d_model, c.norm_eps))


def _dense(config: Config) -> GatedFeedForward:
    return llama_shaped.gated(config.model_copy(update={"d_ff": config.d_dense}))


def shape(config: Config) -> Shape:
    """What `nn.arithmetic` needs to know; blocks without experts are a stack of their own there."""
    c = config
    vectors = {"vectors_per_layer": 2 * c.d_model + 2 * c.d_head, "head_norms": True}
    plain = len(set(c.dense_layers) & set(range(c.n_layers)))
    if not plain:
        return mixtures.shape(c, **vectors)
    without = {"vocab_size": 0, "other_vectors": 0, "other_matrices": 0}
    beside = llama_shaped.shape(c, n_layers=plain, d_ff=c.d_dense, **vectors, **without)
    return mixtures.shape(c, n_layers=c.n_layers - plain, also=(beside,), **vectors)


def hf_names(config: Config) -> dict[str, Stored]:
    """Our parameter names and where each stands in a Hugging Face file."""
    expert = "mlp.experts.{{}}"
    names = mixtures.names(
        config,
        "mlp.gate.weight",
        f"{expert}.gate_proj.weight",
        f"{expert}.up_proj.weight",
        f"{expert}.down_proj.weight",
    )
    plain = tuple(f"stack.blocks.{layer}." for layer in config.dense_layers)
    found = llama_shaped.hf_names(config, names | NORMS)
    dense = llama_shaped.hf_names(config, NAMES | NORMS)
    return {ours: place for ours, place in found.items() if not ours.startswith(plain)} | {
        ours: place for ours, place in dense.items() if ours.startswith(plain)
    }


def to_hf(config: Config) -> dict[str, Any]:
    """The settings as `transformers` names them."""
    c = config
    return llama_shaped.to_hf(
        c, HF_MODEL_TYPE, intermediate_size=c.d_dense, moe_intermediate_size=c.d_ff, num_experts=c.n_experts,
        norm_topk_prob=c.renormalised, decoder_sparse_step=1, mlp_only_layers=list(c.dense_layers),
        attention_bias=False, use_sliding_window=False, sliding_window=None, **mixtures.to_hf(c),
        **_rope.to_hf(c.rope_theta, c.rope_scaling),
    )  # fmt: skip


def from_hf(settings: dict[str, Any]) -> Config:
    """Our settings from `transformers`'. Raises UserError for what we do not do."""
    need(settings, HF_MODEL_TYPE, {"hidden_act": ("silu",), "attention_bias": (False,)})
    unwindowed(settings, HF_MODEL_TYPE)
    plain = _dense_layers(settings)
    return llama_shaped.from_hf(
        Config, settings, HF_ARCHITECTURES, rope_scaling=_rope.from_hf(settings, HF_MODEL_TYPE),
        n_experts=settings.get("num_local_experts", settings.get("num_experts", 128)),
        n_kv_heads=settings.get("num_key_value_heads", 4), d_ff=settings.get("moe_intermediate_size", 768),
        d_dense=settings.get("intermediate_size", 6144), renormalised=settings.get("norm_topk_prob", False),
        dense_layers=plain,
        **mixtures.from_hf(settings, n_active=8),
    )  # fmt: skip


def _dense_layers(settings: dict[str, Any]) -> tuple[int, ...]:
    """Blocks without experts: those listed, and all but each so-many-th."""
    step, plain = settings.get("decoder_sparse_step", 1), settings.get("mlp_only_layers") or []
    layers = range(settings.get("num_hidden_layers", 24))
    if strange := [layer for layer in plain if layer not in layers]:
        raise UserError(f"config.json: 'mlp_only_layers' has {strange[0]!r}, and the model has {len(layers)} layers.")
    return tuple(layer for layer in layers if layer in plain or (layer + 1) % step)
