"""gpt-oss: attention with sinks, every other layer with a window, experts with a clamped gate (OpenAI 2025)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..base.config import Count
from ..nn.arithmetic import Shape
from ..nn.experts import shares_of_chosen
from ..nn.masks import Causal
from ..nn.mixing import Scored
from ..nn.norm import RMSNorm
from ..nn.transformer import Transformer
from . import _alternating as alternating
from . import _llama_shaped as llama_shaped
from . import _mixtures as mixtures
from . import _rope
from ._alternating import FULL, SLIDING
from ._llama_shaped import HF_IGNORED, HF_PREFIX, NAMES, hf_tied
from ._mixtures import Mixture
from ._rope import Yarn
from ._stored import Stored, idle, need

__all__ = ["HF_IGNORED", "HF_PREFIX", "hf_tied"]
HF_MODEL_TYPE = "gpt_oss"
HF_ARCHITECTURES = llama_shaped.architectures("GptOss")
STRETCHED = Yarn(factor=32.0, original_max_len=4096, truncate=False)


class Config(Mixture):
    """Shape of a gpt-oss model."""

    n_experts: Count = 32
    """Experts in each block."""
    n_active: Count = 4
    """How many of them a token passes through."""
    max_len: Count = 131_072
    """Longest text in tokens that the model is meant for."""
    rope_theta: float = 150_000.0
    """Base of the rotary frequencies."""
    rope_scaling: Yarn | None = STRETCHED
    """How rotary positions are stretched."""
    norm_eps: float = 1e-5
    """Added to the mean square in RMSNorm."""
    window: Count = 128
    """How many tokens a token sees in the layers that do not see everything, itself included."""
    whole_every: Count = 2
    """Each so-many-th layer sees everything, the others a window."""
    gate_sharpness: float = 1.702
    """An expert's gate is x sigmoid(this x)."""
    gate_limit: float = 7.0
    """Gates are clamped from above to it, and what they let through from both sides."""


def _published(n_layers: int, n_experts: int) -> Config:
    return Config(
        vocab_size=201_088, d_model=2880, n_layers=n_layers, n_heads=64, n_kv_heads=8, d_head=64, d_ff=2880,
        n_experts=n_experts, balance=0.9,
    )  # fmt: skip


PRESETS = {
    "gpt-oss-nano": Config(
        vocab_size=4096, d_model=128, n_layers=4, n_heads=4, n_kv_heads=2, d_head=32, d_ff=128, n_experts=8,
        n_active=2, max_len=4096, rope_theta=10_000.0, rope_scaling=None, balance=0.01,
    ),
    "gpt-oss-20b": _published(24, 32),
    "gpt-oss-120b": _published(36, 128),
}  # fmt: skip


class Sinks(Scored):
    """Softmax over the keys and a learned score a head that stands for nothing: a token need not look anywhere."""

    def __init__(self, n_heads: int, scale: float | None = None, dropout: float = 0.0) -> None:
        super().__init__(scale, dropout)
        self.sinks = nn.Parameter(torch.zeros(n_heads))

    def shares(self, scores: Tensor, seen: Tensor | None) -> Tensor:
        return SinkSoftmax.apply(scores if seen is None else scores + seen, self.sinks)


class SinkSoftmax(torch.autograd.Function):
    """exp(s) / (exp(sink) + sum exp(s)) over the last axis: scores [B, H, T, S], sinks [H] -> float32 [B, H, T, S]."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, sinks: Tensor) -> Tensor:
        sink = sinks.float()[:, None, None]
        shares = scores.to(torch.float32, copy=True)
        top = torch.maximum(shares.amax(-1, keepdim=True), sink)
        shares.sub_(top).exp_()
        shares.div_(shares.sum(-1, keepdim=True).add_(torch.exp(sink - top)))
        ctx.save_for_backward(shares)
        ctx.dtypes = scores.dtype, sinks.dtype
        return shares

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        (shares,) = ctx.saved_tensors
        slope = grad * shares
        along = slope.sum(-1, keepdim=True)
        to_sinks = -((1.0 - shares.sum(-1, keepdim=True)) * along).sum((0, 2, 3))
        return slope.addcmul_(shares, along, value=-1).to(ctx.dtypes[0]), to_sinks.to(ctx.dtypes[1])


@dataclass(frozen=True, slots=True)
class ClampedSwiGLU:
    """gate sigmoid(sharpness gate) (up + 1), with gate below `limit` and up within it on both sides."""

    sharpness: float
    limit: float

    def __call__(self, gate: Tensor, up: Tensor) -> Tensor:
        gate = gate.clamp(max=self.limit)
        return torch.sigmoid(self.sharpness * gate).mul_(gate).mul_(up.clamp(-self.limit, self.limit).add_(1))

    def slopes(self, gate: Tensor, up: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
        low, within = gate <= self.limit, up.abs() <= self.limit
        gate, up = gate.clamp(max=self.limit), up.clamp(-self.limit, self.limit)
        open_by = torch.sigmoid(self.sharpness * gate)
        bend = open_by * (1 + self.sharpness * gate * (1 - open_by))
        return grad * (up + 1) * bend * low, grad * gate * open_by * within


@dataclass(frozen=True, slots=True)
class Interleaved:
    """Two tensors that take turns along the last axis (gate_up_proj)."""

    def split(self, tensor: Tensor) -> list[Tensor]:
        return [tensor[..., ::2], tensor[..., 1::2]]

    def join(self, parts: list[Tensor]) -> Tensor:
        return torch.stack(parts, -1).flatten(-2)


def build(config: Config) -> Transformer:
    """The model with fresh weights, on torch's current device."""
    c = config
    kinds = alternating.layer_types(c.n_layers, c.whole_every)
    masks, rotary = {SLIDING: Causal(c.window), FULL: Causal()}, _rope.rotary(c.d_head, c.rope_theta, c.rope_scaling)
    mix = ClampedSwiGLU(c.gate_sharpness, c.gate_limit)

    def block(layer: int) -> Any:
        attention = llama_shaped.attention(
            c, layer, mask=masks[kinds[layer]], position=rotary, mixer=Sinks(c.n_heads, dropout=c.dropout),
            bias=True, out_bias=True,
        )  # fmt: skip
        return mixtures.block(c, attention, mixtures.experts(c, shares_of_chosen, mix, bias=True))

    return llama_shaped.assemble(c, block, RMSNorm(c.d_model, c.norm_eps))


def shape(config: Config) -> Shape:
    """What `nn.arithmetic` needs to know."""
    c = config
    attention = (c.n_heads + 2 * c.n_kv_heads) * c.d_head + c.d_model + c.n_heads  # biases, and the sinks
    experts = c.n_experts * (2 * c.d_ff + c.d_model + 1)  # theirs, and the router's
    windows = alternating.windows(c.n_layers, c.whole_every, c.window)
    return mixtures.shape(c, vectors_per_layer=2 * c.d_model + attention + experts, windows=windows)


def hf_names(config: Config) -> dict[str, Stored]:
    """Our parameter names and where each stands in a Hugging Face file."""
    both, sides = Interleaved(), ("query", "key", "value", "out")
    names: dict[str, str | Stored] = {
        ours: theirs for ours, theirs in NAMES.items() if not ours.startswith("feedforward.")
    }
    names |= {f"attention.{side}.bias": f"self_attn.{side[0]}_proj.bias" for side in sides}
    names |= {f"feedforward.router.{kind}": f"mlp.router.{kind}" for kind in ("weight", "bias")}
    names["attention.mixer.sinks"] = "self_attn.sinks"
    for part, ours in enumerate(("gate", "up")):
        place = Stored("mlp.experts.gate_up_proj", transpose=True, part=part, cut=both)
        names[f"feedforward.{ours}.weight"] = place
        names[f"feedforward.{ours}.bias"] = Stored("mlp.experts.gate_up_proj_bias", part=part, cut=both)
    names["feedforward.down.weight"] = Stored("mlp.experts.down_proj", transpose=True)
    names["feedforward.down.bias"] = "mlp.experts.down_proj_bias"
    return llama_shaped.hf_names(config, names)


def to_hf(config: Config) -> dict[str, Any]:
    """The settings as `transformers` names them."""
    c = config
    return llama_shaped.to_hf(
        c, HF_MODEL_TYPE, num_local_experts=c.n_experts, sliding_window=c.window, attention_bias=True,
        layer_types=alternating.layer_types(c.n_layers, c.whole_every), swiglu_alpha=c.gate_sharpness,
        swiglu_limit=c.gate_limit, **mixtures.to_hf(c), **_rope.to_hf(c.rope_theta, c.rope_scaling),
    )  # fmt: skip


def from_hf(settings: dict[str, Any]) -> Config:
    """Our settings from `transformers`'. Raises UserError for what we do not do."""
    need(settings, HF_MODEL_TYPE, {"hidden_act": ("silu",), "attention_bias": (True,)})
    idle(settings, "experts_per_token", "initial_context_length")  # older words for what other settings say
    told = settings.get("rope_parameters") or settings.get("rope_scaling")
    return llama_shaped.from_hf(
        Config, settings, HF_ARCHITECTURES, n_experts=settings.get("num_local_experts", 128),
        n_kv_heads=settings.get("num_key_value_heads", 8), d_head=settings.get("head_dim", 64),
        max_len=settings.get("max_position_embeddings", 131_072), norm_eps=settings.get("rms_norm_eps", 1e-5),
        window=settings.get("sliding_window", 128), whole_every=alternating.every(settings, 2, HF_MODEL_TYPE),
        rope_theta=_rope.rope({"rope_theta": 150_000.0} | settings)["rope_theta"],
        rope_scaling=_rope.from_hf(settings, HF_MODEL_TYPE, ("yarn",)) if told else STRETCHED,
        gate_sharpness=settings.get("swiglu_alpha", 1.702), gate_limit=settings.get("swiglu_limit", 7.0),
        **mixtures.from_hf(settings, n_active=4),
    )  # fmt: skip
