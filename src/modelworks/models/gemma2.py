"""Gemma 2: sandwich norms, every other layer with a window, capped scores and logits (Gemma Team 2024)."""

from __future__ import annotations

from typing import Any

from ..base.config import Count
from ..nn.position import Rotary, frequencies
from ..nn.transformer import Transformer
from . import _gemma_shaped as gemma_shaped
from . import _llama_shaped as llama_shaped
from ._alternating import FULL, SLIDING
from ._gemma_shaped import NAMES, GemmaShaped, shape
from ._llama_shaped import HF_IGNORED, HF_PREFIX, TENSOR_PLAN, hf_tied
from ._stored import Stored, need, rope

__all__ = ["HF_IGNORED", "HF_PREFIX", "TENSOR_PLAN", "hf_tied", "shape"]
HF_MODEL_TYPE = "gemma2"
HF_ARCHITECTURES = llama_shaped.architectures("Gemma2")
ATTENTION_CAP, LOGIT_CAP = 50.0, 30.0


class Config(GemmaShaped):
    """Shape of a Gemma 2 model."""

    max_len: Count = 8192
    """Longest text in tokens that the model is meant for."""
    whole_every: Count = 2
    """Each so-many-th layer sees everything, the others a window."""
    attention_cap: float | None = ATTENTION_CAP
    """Scores are bent to stay below it; as they are where it is none."""
    logit_cap: float | None = LOGIT_CAP
    """Logits are bent to stay below it; as they are where it is none."""


def _published(d_model: int, n_layers: int, n_heads: int, n_kv_heads: int, d_ff: int, **other: Any) -> Config:
    return Config(
        vocab_size=256_000, d_model=d_model, n_layers=n_layers, n_heads=n_heads, n_kv_heads=n_kv_heads,
        d_ff=d_ff, **{"d_head": 256} | other,
    )  # fmt: skip


PRESETS = {
    "gemma2-nano": Config(
        vocab_size=4096, d_model=128, n_layers=4, n_heads=4, n_kv_heads=2, d_head=32, d_ff=320, max_len=4096,
        window=128, query_scalar=32,
    ),
    "gemma2-2b": _published(2304, 26, 8, 4, 9216),
    "gemma2-9b": _published(3584, 42, 16, 8, 14336),
    "gemma2-27b": _published(4608, 46, 32, 16, 36864, d_head=128, query_scalar=144),
}  # fmt: skip


def build(config: Config) -> Transformer:
    """The model with fresh weights, on torch's current device."""
    rotary = Rotary(frequencies(config.d_head, config.rope_theta))
    return gemma_shaped.assemble(config, {SLIDING: rotary, FULL: rotary})


def hf_names(config: Config) -> dict[str, Stored]:
    """Our parameter names and where each stands in a Hugging Face file."""
    return llama_shaped.hf_names(config, NAMES)


def to_hf(config: Config) -> dict[str, Any]:
    """The settings as `transformers` names them."""
    return gemma_shaped.to_hf(config, HF_MODEL_TYPE)


def from_hf(settings: dict[str, Any]) -> Config:
    """Our settings from `transformers`'. Raises UserError for what we do not do."""
    need(rope(settings), HF_MODEL_TYPE, {"rope_type": ("default",), "partial_rotary_factor": (1.0, None)})
    caps = (ATTENTION_CAP, LOGIT_CAP)
    return gemma_shaped.from_hf(Config, settings, HF_ARCHITECTURES, HF_MODEL_TYPE, every=2, caps=caps)
