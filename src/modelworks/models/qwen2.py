"""Qwen2 and Qwen2.5: Llama's shape with biases on queries, keys and values (Yang et al. 2024, both reports)."""

from __future__ import annotations

from typing import Any

from ..base.config import Count
from ..base.errors import UserError
from ..nn.arithmetic import Shape
from ..nn.masks import Causal
from ..nn.mixing import Softmax
from ..nn.norm import RMSNorm
from ..nn.transformer import Transformer
from . import _llama_shaped as llama_shaped
from . import _rope
from ._llama_shaped import HF_IGNORED, HF_PREFIX, NAMES, TENSOR_PLAN, LlamaShaped, hf_tied
from ._rope import Scaling
from ._stored import Stored, need

__all__ = ["HF_IGNORED", "HF_PREFIX", "TENSOR_PLAN", "hf_tied"]
HF_MODEL_TYPE = "qwen2"
HF_ARCHITECTURES = llama_shaped.architectures("Qwen2")
FULL, SLIDING = "full_attention", "sliding_attention"


class Config(LlamaShaped):
    """Shape of a Qwen2 model."""

    max_len: Count = 32_768
    """Longest text in tokens that the model is meant for."""
    rope_theta: float = 1_000_000.0
    """Base of the rotary frequencies."""
    rope_scaling: Scaling | None = None
    """How rotary positions are stretched: linear, llama3 or yarn; none unless given."""
    window: int | None = None
    """How many tokens a token sees in the upper layers, itself included; all earlier ones unless given."""
    full_layers: int = 0
    """How many of the first layers see everything, where there is a window."""


def _published(d_model: int, n_layers: int, n_heads: int, n_kv_heads: int, d_ff: int, **other: Any) -> Config:
    """Heads of 128; the larger models have a few words more, so that the vocabulary divides by 512."""
    tied = d_model < 3584
    fields: dict[str, Any] = {"d_head": 128, "vocab_size": 151_936 if tied else 152_064, "max_len": 131_072} | other
    return Config(
        d_model=d_model, n_layers=n_layers, n_heads=n_heads, n_kv_heads=n_kv_heads, d_ff=d_ff,
        tie_word_embeddings=tied, **fields,
    )  # fmt: skip


PRESETS = {
    "qwen2-nano": Config(
        vocab_size=4096, d_model=128, n_layers=4, n_heads=4, n_kv_heads=2, d_head=32, d_ff=320, max_len=4096,
        rope_theta=10_000.0, tie_word_embeddings=True,
    ),
    "qwen2-0.5b": _published(896, 24, 14, 2, 4864, d_head=64),
    "qwen2-1.5b": _published(1536, 28, 12, 2, 8960),
    "qwen2-7b": _published(3584, 28, 28, 4, 18944),
    "qwen2-72b": _published(8192, 80, 64, 8, 29568),
    "qwen2.5-0.5b": _published(896, 24, 14, 2, 4864, d_head=64, max_len=32_768),
    "qwen2.5-1.5b": _published(1536, 28, 12, 2, 8960),
    "qwen2.5-3b": _published(2048, 36, 16, 2, 11008, max_len=32_768),
    "qwen2.5-7b": _published(3584, 28, 28, 4, 18944),
    "qwen2.5-14b": _published(5120, 48, 40, 8, 13824),
    "qwen2.5-32b": _published(5120, 64, 40, 8, 27648),
    "qwen2.5-72b": _published(8192, 80, 64, 8, 29568),
}  # fmt: skip


def build(config: Config) -> Transformer:
    """The model with fresh weights, on torch's current device."""
    c = config
    rotary = _rope.rotary(c.d_head, c.rope_theta, c.rope_scaling)
    masks = {FULL: Causal(), SLIDING: Causal(c.window)}
    kinds = _layer_types(c)

    def block(layer: int) -> Any:
        attention = llama_shaped.attention(
            c, layer, mask=masks[kinds[layer]], position=rotary, mixer=Softmax(dropout=c.dropout), bias=True
        )
        return llama_shaped.block(c, attention, llama_shaped.gated(c))

    return llama_shaped.assemble(c, block, RMSNorm(c.d_model, c.norm_eps))


def _layer_types(config: Config) -> list[str]:
    """What each layer sees, in the words of a config.json."""
    full = config.full_layers if config.window else config.n_layers
    return [FULL if layer < full else SLIDING for layer in range(config.n_layers)]


def shape(config: Config) -> Shape:
    """What `nn.arithmetic` needs to know."""
    c = config
    windows = tuple(c.window or 0 if kind == SLIDING else 0 for kind in _layer_types(c))
    biases = (c.n_heads + 2 * c.n_kv_heads) * c.d_head
    return llama_shaped.shape(c, vectors_per_layer=2 * c.d_model + biases, windows=windows if any(windows) else ())


def hf_names(config: Config) -> dict[str, Stored]:
    """Our parameter names and where each stands in a Hugging Face file."""
    biases = {f"attention.{part}.bias": f"self_attn.{part[0]}_proj.bias" for part in ("query", "key", "value")}
    return llama_shaped.hf_names(config, NAMES | biases)


def to_hf(config: Config) -> dict[str, Any]:
    """The settings as `transformers` names them."""
    c = config
    own: dict[str, Any] = {
        "use_sliding_window": c.window is not None,
        "sliding_window": c.window,
        "max_window_layers": c.full_layers if c.window else c.n_layers,
        "layer_types": _layer_types(c),
    }
    return llama_shaped.to_hf(config, HF_MODEL_TYPE, **own, **_rope.to_hf(c.rope_theta, c.rope_scaling))


def from_hf(settings: dict[str, Any]) -> Config:
    """Our settings from `transformers`' (both spellings of rotary positions). Raises UserError for what we lack."""
    need(settings, HF_MODEL_TYPE, {"hidden_act": ("silu",)})
    window, full_layers = _window(settings)
    return llama_shaped.from_hf(
        Config, settings, HF_ARCHITECTURES, rope_scaling=_rope.from_hf(settings, HF_MODEL_TYPE),
        window=window, full_layers=full_layers,
    )  # fmt: skip


def _window(settings: dict[str, Any]) -> tuple[int | None, int]:
    """The window of the upper layers, and how many layers below them see everything."""
    width, full = settings.get("sliding_window", 4096), settings.get("max_window_layers", 28)
    kinds, n_layers = settings.get("layer_types"), settings.get("num_hidden_layers", 0)
    on = settings.get("use_sliding_window", False)
    if on and width is None:
        raise UserError("config.json: 'use_sliding_window' is on and 'sliding_window' gives no width; add it.")
    if kinds is not None:
        full = kinds.count(FULL)
        if kinds != [FULL] * full + [SLIDING] * (n_layers - full) or (full < n_layers and not on):
            raise UserError(
                "config.json: 'layer_types' is not some layers that see everything and windows above them, which is "
                "all that our qwen2 does; this checkpoint cannot be opened exactly."
            )
    return (width, full) if on and full < n_layers else (None, 0)
