"""Gemma 3, its text model: five layers with windows to one without, each with its own rotary base, QK-norm
(Gemma Team 2025)."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..base.config import Count
from ..nn.arithmetic import Shape
from ..nn.position import Rotary, frequencies
from ..nn.transformer import Transformer
from . import _gemma_shaped as gemma_shaped
from . import _llama_shaped as llama_shaped
from . import _rope
from ._alternating import FULL, SLIDING
from ._gemma_shaped import NAMES, GemmaShaped, OneCentred
from ._llama_shaped import HF_IGNORED, HF_PREFIX, TENSOR_PLAN, hf_tied
from ._rope import Linear
from ._stored import Stored, need

__all__ = ["HF_IGNORED", "HF_PREFIX", "TENSOR_PLAN", "hf_tied"]
HF_MODEL_TYPE = "gemma3_text"
HF_ARCHITECTURES = {
    "Gemma3ForCausalLM": "language",
    "Gemma3TextModel": "none",
    "Gemma3TextForSequenceClassification": "classes",
}
NORMS = {f"attention.{kind}_norm.weight": f"self_attn.{kind[0]}_norm.weight" for kind in ("query", "key")}
BASE, LOCAL_BASE = 1_000_000.0, 10_000.0


class Config(GemmaShaped):
    """Shape of a Gemma 3 text model."""

    max_len: Count = 131_072
    """Longest text in tokens that the model is meant for."""
    whole_every: Count = 6
    """Each so-many-th layer sees everything, the others a window."""
    rope_theta: float = BASE
    """Base of the rotary frequencies in layers that see everything."""
    rope_theta_local: float = LOCAL_BASE
    """Base of the rotary frequencies in layers with a window."""
    rope_scaling: Linear | None = None
    """How rotary positions of layers that see everything are stretched; not at all unless given."""


def _published(d_model: int, n_layers: int, n_heads: int, n_kv_heads: int, d_ff: int, **other: Any) -> Config:
    """From 4B on: positions stretched eight times, and the words of the images beside those of the text."""
    fields = {"vocab_size": 262_208, "d_head": 256, "window": 1024, "rope_scaling": Linear(factor=8.0)} | other
    return Config(
        d_model=d_model, n_layers=n_layers, n_heads=n_heads, n_kv_heads=n_kv_heads, d_ff=d_ff, **fields
    )  # fmt: skip


_SMALL: dict[str, Any] = {"vocab_size": 262_144, "window": 512, "rope_scaling": None, "max_len": 32_768}
PRESETS = {
    "gemma3-nano": Config(
        vocab_size=4096, d_model=128, n_layers=6, n_heads=4, n_kv_heads=1, d_head=32, d_ff=320, max_len=4096,
        window=128, query_scalar=32,
    ),
    "gemma3-270m": _published(640, 18, 4, 1, 2048, **_SMALL),
    "gemma3-1b": _published(1152, 26, 4, 1, 6912, **_SMALL),
    "gemma3-4b": _published(2560, 34, 8, 4, 10240),
    "gemma3-12b": _published(3840, 48, 16, 8, 15360),
    "gemma3-27b": _published(5376, 62, 32, 16, 21504, d_head=128, query_scalar=168),
}  # fmt: skip


def build(config: Config) -> Transformer:
    """The model with fresh weights, on torch's current device."""
    c = config
    positions = {
        SLIDING: Rotary(frequencies(c.d_head, c.rope_theta_local)),
        FULL: _rope.rotary(c.d_head, c.rope_theta, c.rope_scaling),
    }

    def norms() -> dict[str, nn.Module]:
        return {"query_norm": OneCentred(c.d_head, c.norm_eps), "key_norm": OneCentred(c.d_head, c.norm_eps)}

    return gemma_shaped.assemble(c, positions, norms)


def shape(config: Config) -> Shape:
    """What `nn.arithmetic` needs to know."""
    c = config
    return gemma_shaped.shape(c, vectors_per_layer=4 * c.d_model + 2 * c.d_head, head_norms=True)


def hf_names(config: Config) -> dict[str, Stored]:
    """Our parameter names and where each stands in a Hugging Face file."""
    return llama_shaped.hf_names(config, NAMES | NORMS)


def to_hf(config: Config) -> dict[str, Any]:
    """The settings as `transformers` names them: in today's spelling, and in the one that others still read."""
    c = config
    whole = _rope.to_hf(c.rope_theta, c.rope_scaling)
    local = {"rope_type": "default", "rope_theta": c.rope_theta_local}
    both = {SLIDING: local, FULL: whole["rope_parameters"]}
    return gemma_shaped.to_hf(
        c, HF_MODEL_TYPE, **whole | {"rope_parameters": both}, rope_local_base_freq=c.rope_theta_local,
        use_bidirectional_attention=False,
    )  # fmt: skip


def from_hf(settings: dict[str, Any]) -> Config:
    """Our settings from `transformers`' (both spellings of rotary positions). Raises UserError for what we lack."""
    given = settings.get("rope_parameters") or {}
    whole = {"rope_theta": settings.get("rope_theta", BASE)} | (settings.get("rope_scaling") or {})
    whole |= given.get(FULL) or {}
    local = {"rope_theta": settings.get("rope_local_base_freq", LOCAL_BASE)} | (given.get(SLIDING) or {})
    need(given, HF_MODEL_TYPE, {"rope_type": ("default",)})
    need(local, HF_MODEL_TYPE, {"rope_type": ("default",), "partial_rotary_factor": (1.0, None)})
    return gemma_shaped.from_hf(
        Config, settings, HF_ARCHITECTURES, HF_MODEL_TYPE, every=6, caps=(None, None),
        max_len=settings.get("max_position_embeddings", 131_072),
        rope_theta=whole["rope_theta"], rope_theta_local=local["rope_theta"],
        rope_scaling=_rope.from_hf({"rope_parameters": whole}, HF_MODEL_TYPE, ("linear",)),
    )  # fmt: skip
