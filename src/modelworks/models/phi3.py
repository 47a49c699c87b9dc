"""Phi-3 and Phi-4: Llama's shape with fused matrices on disk and LongRoPE (Abdin et al. 2024, both reports)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ..base.config import Count, Settings
from ..base.errors import UserError
from ..nn.arithmetic import Shape
from ..nn.layout import Layout
from ..nn.masks import Causal
from ..nn.mixing import Softmax
from ..nn.norm import RMSNorm
from ..nn.position import Rotary, frequencies
from ..nn.transformer import Transformer
from . import _llama_shaped as llama_shaped
from ._llama_shaped import HF_IGNORED, HF_PREFIX, NAMES, TENSOR_PLAN, LlamaShaped, hf_tied
from ._stored import Equal, Sizes, Stored, need, rope

__all__ = ["HF_IGNORED", "HF_PREFIX", "TENSOR_PLAN", "hf_tied"]
HF_MODEL_TYPE = "phi3"
HF_ARCHITECTURES = llama_shaped.architectures("Phi3")
LENGTH = "original_max_position_embeddings"


class LongRope(Settings):
    """Each pair of dimensions slowed down by a factor of its own, found by search (Ding et al. 2024)."""

    short: tuple[float, ...]
    """Factors for texts up to `original_max_len`, one a pair of dimensions."""
    long: tuple[float, ...]
    """Factors for longer texts."""
    original_max_len: Count = 4096
    """Length that the model was first trained on, in tokens."""
    attention_factor: float | None = None
    """What cosines and sines are multiplied by; sqrt(1 + ln(max_len / original) / ln(original)) unless given."""


class Config(LlamaShaped):
    """Shape of a Phi-3 model."""

    norm_eps: float = 1e-5
    """Added to the mean square in RMSNorm."""
    window: int | None = None
    """How many tokens each token sees, itself included; all earlier ones unless given."""
    rotary_share: float = 1.0
    """Share of a head's dimensions that are turned; the others carry no position."""
    rope_scaling: LongRope | None = None
    """How rotary positions are stretched; not at all unless given."""


class LongRotary(nn.Module):
    """Rotary positions with two sets of frequencies: one for texts of up to `original` tokens, one for longer ones.

    A text's own length decides (that of its document where several share a row, or the batch's last position where
    positions are given). With a cache it is what the text may grow to, known from the start (the cache's `reach` of
    each row, else its room): keys that are cached must stay as they are when the text passes `original`. (vLLM goes
    by the longest text that it may serve; `transformers` throws the cache away at that point and starts again.)
    """

    def __init__(self, short: Rotary, long: Rotary, original: int) -> None:
        super().__init__()
        self.short, self.long, self.original = short, long, original

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        longer = layout.once(self, lambda: self._longer(layout))
        if isinstance(longer, bool):
            return (self.long if longer else self.short)(x, layout)
        return torch.where(longer[..., None, None], self.long(x, layout), self.short(x, layout))

    def _longer(self, layout: Layout) -> bool | Tensor:
        """Whether the text is long, or bool [B, T] or [B, 1] where texts of both kinds may share the batch."""
        if layout.cache is not None:
            reach = layout.cache.reach or [layout.cache.max_len]
            longer = [length > self.original for length in reach]
            return longer[0] if len(set(longer)) == 1 else torch.tensor(longer, device=layout.device)[:, None]
        if layout.documents is None or layout.end <= self.original:
            return layout.end > self.original
        starts = torch.ones_like(layout.documents)
        starts[:, 1:] = layout.documents[:, 1:] != layout.documents[:, :-1]
        run = starts.cumsum(1) - 1
        lengths = torch.zeros_like(run).scatter_add_(1, run, torch.ones_like(run))
        return lengths.gather(1, run) > self.original


def _published(d_model: int, n_layers: int, n_heads: int, n_kv_heads: int, d_ff: int, **other: Any) -> Config:
    fields: dict[str, Any] = {"vocab_size": 32_064} | other
    return Config(
        d_model=d_model, n_layers=n_layers, n_heads=n_heads, n_kv_heads=n_kv_heads, d_head=d_model // n_heads,
        d_ff=d_ff, **fields,
    )  # fmt: skip


def _stretched(pairs: int) -> dict[str, Any]:
    """128k positions on 4k. The published factors were searched for on trained weights and come with those (opening
    a directory reads them); a fresh model starts with none."""
    return {"max_len": 131_072, "rope_scaling": LongRope(short=(1.0,) * pairs, long=(1.0,) * pairs)}


PRESETS = {
    "phi3-nano": Config(
        vocab_size=4096, d_model=128, n_layers=4, n_heads=4, n_kv_heads=2, d_head=32, d_ff=320, max_len=4096,
        tie_word_embeddings=True,
    ),
    "phi3-mini-4k": _published(3072, 32, 32, 32, 8192, window=2047),
    "phi3-mini-128k": _published(3072, 32, 32, 32, 8192, window=262_144, **_stretched(48)),
    "phi3-medium-4k": _published(5120, 40, 40, 10, 17920, window=2047),
    "phi3-medium-128k": _published(5120, 40, 40, 10, 17920, window=131_072, **_stretched(64)),
    "phi4-mini": _published(
        3072, 32, 24, 8, 8192, vocab_size=200_064, rotary_share=0.75, window=262_144, tie_word_embeddings=True,
        **_stretched(48),
    ),
    "phi4-14b": _published(5120, 40, 40, 10, 17920, vocab_size=100_352, max_len=16_384, rope_theta=250_000.0),
}  # fmt: skip


def build(config: Config) -> Transformer:
    """The model with fresh weights, on torch's current device."""
    c = config
    mask, position = Causal(c.window), _position(c)

    def block(layer: int) -> Any:
        mixer = Softmax(dropout=c.dropout)
        attention = llama_shaped.attention(c, layer, mask=mask, position=position, mixer=mixer)
        return llama_shaped.block(c, attention, llama_shaped.gated(c))

    return llama_shaped.assemble(c, block, RMSNorm(c.d_model, c.norm_eps))


def _turned(config: Config) -> int:
    """How many dimensions of a head are turned."""
    return int(config.d_head * config.rotary_share)


def _position(config: Config) -> nn.Module:
    """Raises UserError when there is not one factor for each pair of dimensions that is turned."""
    inverse, scaling = frequencies(_turned(config), config.rope_theta), config.rope_scaling
    if scaling is None:
        return Rotary(inverse)
    for name, factors in (("short", scaling.short), ("long", scaling.long)):
        if len(factors) != len(inverse):
            raise UserError(
                f"rope_scaling: {len(factors)} {name} factors are given and the heads have {len(inverse)} pairs of "
                "dimensions to turn; give one a pair."
            )
    scale, original = scaling.attention_factor, scaling.original_max_len
    if scale is None:
        stretch = config.max_len / original
        scale = math.sqrt(1 + math.log(stretch) / math.log(original)) if stretch > 1 else 1.0
    short, long = (
        Rotary(inverse / torch.tensor(factors, dtype=torch.float64, device="cpu"), scale)
        for factors in (scaling.short, scaling.long)
    )
    return LongRotary(short, long, original)


def shape(config: Config) -> Shape:
    """What `nn.arithmetic` needs to know."""
    return llama_shaped.shape(config, windows=(config.window,) * config.n_layers if config.window else ())


def hf_names(config: Config) -> dict[str, Stored]:
    """Our parameter names and where each stands in a Hugging Face file: queries, keys and values in one matrix, gate
    and up in another."""
    c = config
    attention = Sizes((c.n_heads * c.d_head, c.n_kv_heads * c.d_head, c.n_kv_heads * c.d_head), 0)
    names: dict[str, str | Stored] = dict(NAMES)
    for number, part in enumerate(("query", "key", "value")):
        names[f"attention.{part}.weight"] = Stored("self_attn.qkv_proj.weight", part=number, cut=attention)
    for number, part in enumerate(("gate", "up")):
        names[f"feedforward.{part}.weight"] = Stored("mlp.gate_up_proj.weight", part=number, cut=Equal(2, 0))
    return llama_shaped.hf_names(config, names)


def to_hf(config: Config) -> dict[str, Any]:
    """The settings as `transformers` names them: rotary positions in today's spelling and in the older one."""
    c, scaling = config, config.rope_scaling
    rule: dict[str, Any] = {"rope_type": "default"}
    if scaling is not None:
        factors = {"short_factor": list(scaling.short), "long_factor": list(scaling.long)}
        rule = {"rope_type": "longrope"} | factors
        if scaling.attention_factor is not None:
            rule["attention_factor"] = scaling.attention_factor
    own: dict[str, Any] = {
        "sliding_window": c.window,
        "partial_rotary_factor": c.rotary_share,
        LENGTH: c.max_len if scaling is None else scaling.original_max_len,
        "rope_scaling": None if scaling is None else rule,
        "rope_parameters": rule | {"rope_theta": c.rope_theta, "partial_rotary_factor": c.rotary_share},
        "resid_pdrop": c.dropout,
        "embd_pdrop": c.dropout,
        **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id")),  # else theirs are of a larger vocabulary
    }
    return llama_shaped.to_hf(config, HF_MODEL_TYPE, **own)


def from_hf(settings: dict[str, Any]) -> Config:
    """Our settings from `transformers`' (both spellings of rotary positions). Raises UserError for what we lack."""
    need(
        settings, HF_MODEL_TYPE,
        {"hidden_act": ("silu",), "attention_bias": (False,), "mlp_bias": (False,), "lm_head_bias": (False,),
         "full_attn_mod": (1,), "interpolate_factor": (1,)},
    )  # fmt: skip
    outside = settings.get("partial_rotary_factor", 1.0)
    share = rope(settings).get("partial_rotary_factor", outside)
    need(settings, HF_MODEL_TYPE, {"partial_rotary_factor": (share,)})
    return llama_shaped.from_hf(
        Config, settings, HF_ARCHITECTURES, window=settings.get("sliding_window"), rotary_share=share,
        rope_scaling=_scaling(settings), max_len=settings.get("max_position_embeddings", 4096),
    )  # fmt: skip


def _scaling(settings: dict[str, Any]) -> LongRope | None:
    """The rule that a config asks for; 'su' and 'yarn' are what the first files called it. Raises UserError."""
    found, original = rope(settings), settings.get(LENGTH, 4096)
    need(found, HF_MODEL_TYPE, {"rope_type": ("default", "longrope", "su", "yarn")})
    if found["rope_type"] == "default":
        return None
    stretch = settings.get("max_position_embeddings", 4096) / original
    need(
        found, HF_MODEL_TYPE,
        {"short_mscale": (None,), "long_mscale": (None,), LENGTH: (original,), "factor": (stretch, None)},
    )  # fmt: skip
    for key in ("short_factor", "long_factor"):
        if not isinstance(found.get(key), list):
            raise UserError(f"config.json: '{key}' of the longrope rule is not a list of factors; add it.")
    return LongRope(
        short=tuple(found["short_factor"]), long=tuple(found["long_factor"]), original_max_len=original,
        attention_factor=found.get("attention_factor"),
    )  # fmt: skip
