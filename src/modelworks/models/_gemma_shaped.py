"""The shape that Gemma 2 set: norms around both parts, windows in most layers, capped scores (Gemma Team 2024)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from ..base.config import Count
from ..nn.activation import tanh_gelu
from ..nn.arithmetic import Shape
from ..nn.heads import LanguageHead
from ..nn.layout import Layout
from ..nn.masks import Causal
from ..nn.mixing import Scored, Softmax
from ..nn.norm import Rms, RMSNorm
from ..nn.precision import matrix_dtype
from ..nn.stack import SandwichBlock
from ..nn.stems import Tokens
from ..nn.transformer import Transformer
from . import _alternating as alternating
from . import _llama_shaped as llama_shaped
from ._alternating import FULL, SLIDING
from ._llama_shaped import AnyShape, LlamaShaped
from ._stored import idle, need


class GemmaShaped(LlamaShaped):
    """Shape of a decoder."""

    tie_word_embeddings: bool = True
    """The head reads with the embedding's own matrix."""
    window: Count = 4096
    """How many tokens a token sees in most layers, itself included."""
    whole_every: Count
    """Each so-many-th layer sees everything, the others a window."""
    query_scalar: Count = 256
    """Scores are divided by the root of it."""
    attention_cap: float | None = None
    """Scores are bent to stay below it; as they are unless given."""
    logit_cap: float | None = None
    """Logits are bent to stay below it; as they are unless given."""


def capped(x: Tensor, cap: float) -> Tensor:
    """cap tanh(x / cap): near x where it is small, never beyond cap."""
    return cap * torch.tanh(x / cap)


class Capped(Scored):
    """Softmax of capped scores."""

    def __init__(self, cap: float, scale: float | None = None, dropout: float = 0.0) -> None:
        super().__init__(scale, dropout)
        self.cap = cap

    def shares(self, scores: Tensor, seen: Tensor | None) -> Tensor:
        scores = capped(scores, self.cap)
        return torch.softmax(scores if seen is None else scores + seen, -1, dtype=torch.float32)


class OneCentred(RMSNorm):
    """x / rms(x) * (1 + weight): a fresh weight is zero, and weight decay pulls towards doing nothing."""

    def __init__(self, d_model: int, eps: float) -> None:
        super().__init__(d_model, eps)
        nn.init.zeros_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        weight, dtype = 1.0 + self.weight.float(), matrix_dtype(x)
        if torch.is_grad_enabled():
            return Rms.apply(x, weight, self.eps, dtype)
        return F.rms_norm(x.float(), weight.shape, weight, self.eps).to(dtype)


class RootScaled(Tokens):
    """Embeddings times the root of their width, which is rounded to their number format first, as in training."""

    def embed(self, tokens: Tensor, layout: Layout) -> Tensor:
        root = torch.tensor(self.tokens.embedding_dim**0.5).to(self.tokens.weight.dtype).item()
        return super().embed(tokens, layout) * root


class CappedHead(LanguageHead):
    """Capped scores of the words."""

    def __init__(self, projection: nn.Linear, cap: float) -> None:
        super().__init__(projection)
        self.cap = cap

    def forward(self, hidden: Tensor) -> Tensor:
        return capped(super().forward(hidden), self.cap)

    def cross_entropy(self, rows: Tensor, labels: Tensor) -> Tensor:
        return CappedCrossEntropy.apply(rows, self.projection.weight, labels, self.cap)


class CappedCrossEntropy(torch.autograd.Function):
    """Cross-entropy of cap tanh(h W' / cap), a few rows at a time, so that the full logits never exist.

    hidden [N, D], weight [V, D], labels [N] -> float32 losses [N]; the backward pass works the logits out again.
    """

    CHUNK = 1 << 20
    """Logits in a chunk."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, cap: float) -> Tensor:
        dtype = matrix_dtype(hidden)
        ctx.cap, ctx.dtypes = cap, (hidden.dtype, weight.dtype)
        with torch.autocast(hidden.device.type, enabled=False):
            rows, table = hidden.to(dtype), weight.to(dtype)
            sums = hidden.new_empty(len(rows), dtype=torch.float32)
            chosen = torch.empty_like(sums)
            for here in _chunks(rows, table):
                logits = _capped_logits(rows[here], table, cap)
                torch.logsumexp(logits, 1, out=sums[here])
                chosen[here] = logits.gather(1, labels[here, None]).squeeze(1)
        ctx.save_for_backward(rows, table, labels, sums)
        return sums - chosen

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        rows, table, labels, sums = ctx.saved_tensors
        to_rows = torch.empty_like(rows)
        to_table = torch.zeros(table.shape, dtype=torch.float32, device=table.device)
        with torch.autocast(rows.device.type, enabled=False):
            for here in _chunks(rows, table):
                logits = _capped_logits(rows[here], table, ctx.cap)
                slope = torch.exp(logits - sums[here, None])
                slope.scatter_add_(1, labels[here, None], -torch.ones_like(slope[:, :1]))
                bent = logits.div_(ctx.cap).square_().neg_().add_(1.0)  # the slope of cap tanh(x / cap)
                slope = slope.mul_(bent).mul_(grad[here, None]).to(rows.dtype)
                torch.mm(slope, table, out=to_rows[here])
                to_table += slope.t() @ rows[here]
        return to_rows.to(ctx.dtypes[0]), to_table.to(ctx.dtypes[1]), None, None


def _chunks(rows: Tensor, table: Tensor) -> list[slice]:
    size = max(1, CappedCrossEntropy.CHUNK // len(table))
    return [slice(start, start + size) for start in range(0, len(rows), size)]


def _capped_logits(rows: Tensor, table: Tensor, cap: float) -> Tensor:
    return F.linear(rows, table).float().div_(cap).tanh_().mul_(cap)


def assemble(
    config: GemmaShaped, positions: Mapping[str, nn.Module], parts: Callable[[], dict[str, nn.Module]] = dict
) -> Transformer:
    """The model with fresh weights; `positions` by kind of layer, `parts` what else attention has in each block.

    Matrices that write to the residual stream do not start at zero: the norm after them would blow that up.
    """
    c = config
    kinds = alternating.layer_types(c.n_layers, c.whole_every)
    masks, scale = {SLIDING: Causal(c.window), FULL: Causal()}, c.query_scalar**-0.5

    def block(layer: int) -> nn.Module:
        cap, kind = c.attention_cap, kinds[layer]
        mixer = Softmax(scale, c.dropout) if cap is None else Capped(cap, scale, c.dropout)
        attends = llama_shaped.attention(c, layer, mask=masks[kind], position=positions[kind], mixer=mixer, **parts())
        first, second, third, fourth = (OneCentred(c.d_model, c.norm_eps) for _ in range(4))
        return SandwichBlock(first, attends, second, third, llama_shaped.gated(c, tanh_gelu), fourth, c.dropout)

    head = LanguageHead if c.logit_cap is None else partial(CappedHead, cap=c.logit_cap)
    norm = OneCentred(c.d_model, c.norm_eps)
    return llama_shaped.assemble(c, block, norm, stem=RootScaled, head=head, writers=c.init_std)


def shape(config: GemmaShaped, **others: Any) -> Shape:
    """What `nn.arithmetic` needs to know; `others` where the family differs."""
    c = config
    facts = {
        "vectors_per_layer": 4 * c.d_model,
        "windows": alternating.windows(c.n_layers, c.whole_every, c.window),
    }
    return llama_shaped.shape(c, **facts | others)


NAMES = llama_shaped.NAMES | {
    "attention_after.weight": "post_attention_layernorm.weight",
    "feedforward_norm.weight": "pre_feedforward_layernorm.weight",
    "feedforward_after.weight": "post_feedforward_layernorm.weight",
}
"""Ours and theirs within a block."""


def to_hf(config: GemmaShaped, model_type: str, **own: Any) -> dict[str, Any]:
    """The settings as `transformers` names them, those of the family (`own`) last."""
    c = config
    shared = {
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh",
        "attention_bias": False,
        "query_pre_attn_scalar": c.query_scalar,
        "sliding_window": c.window,
        "layer_types": alternating.layer_types(c.n_layers, c.whole_every),
        "attn_logit_softcapping": c.attention_cap,
        "final_logit_softcapping": c.logit_cap,
    }
    return llama_shaped.to_hf(c, model_type, **shared | own)


def from_hf(
    kind: type[AnyShape], settings: dict[str, Any], heads: dict[str, str], family: str, *,
    every: int, caps: tuple[float | None, float | None], **own: Any,
) -> AnyShape:  # fmt: skip
    """Our settings from `transformers`'; `every` and `caps` (of scores, of logits) where a config is silent.

    Raises UserError for what we do not do.
    """
    gelu = ("gelu_pytorch_tanh",)
    need(settings, family, {"hidden_activation": (*gelu, None), "hidden_act": gelu, "attention_bias": (False,)})
    need(settings, family, {"use_bidirectional_attention": (False, None)})
    idle(settings, "cache_implementation")
    ours = {
        "n_kv_heads": settings.get("num_key_value_heads", 4),
        "d_head": settings.get("head_dim", 256),
        "max_len": settings.get("max_position_embeddings", 8192),
        "tie_word_embeddings": settings.get("tie_word_embeddings", True),
        "window": settings.get("sliding_window", 4096),
        "whole_every": alternating.every(settings, every, family),
        "query_scalar": settings.get("query_pre_attn_scalar", 256),
        "attention_cap": settings.get("attn_logit_softcapping", caps[0]),
        "logit_cap": settings.get("final_logit_softcapping", caps[1]),
    }
    return llama_shaped.from_hf(kind, settings, heads, **ours | own)
