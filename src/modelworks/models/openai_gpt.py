"""GPT-1: GPT-2's parts with the norms behind them and none at the end (Radford et al. 2018)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from ..base.config import Count
from ..nn.activation import tanh_gelu
from ..nn.arithmetic import Shape
from ..nn.masks import Causal
from ..nn.stack import PostNormBlock, Stack
from ..nn.stems import PositionedTokens
from ..nn.transformer import Transformer
from . import _gpt_shaped as gpt_shaped
from . import _gpt_text as gpt_text
from ._fresh import initialise
from ._gpt_shaped import TENSOR_PLAN
from ._gpt_text import HF_PREFIX, GPTText
from ._stored import Equal, Stored, idle, need, with_bias

__all__ = ["HF_PREFIX", "TENSOR_PLAN"]

HF_MODEL_TYPE = "openai-gpt"
HF_ARCHITECTURES = {
    "OpenAIGPTLMHeadModel": "language",
    "OpenAIGPTModel": "none",
    "OpenAIGPTForSequenceClassification": "classes",
}


class Config(GPTText):
    """Shape of a GPT-1 model; the feed-forward part is four times as wide as the stream."""

    vocab_size: Count = 40_478
    """Number of words."""
    max_len: Count = 512
    """Positions that the model has."""


PRESETS = {"openai-gpt": Config(d_model=768, n_layers=12, n_heads=12)}


def build(config: Config) -> Transformer:
    """The model with fresh weights, on torch's current device."""
    c = config
    mask = Causal()
    blocks = [
        gpt_shaped.block(
            layer, d_model=c.d_model, n_heads=c.n_heads, d_ff=4 * c.d_model, mask=mask, activation=tanh_gelu,
            eps=c.norm_eps, dropout=c.dropout, kind=PostNormBlock,
        )
        for layer in range(c.n_layers)
    ]  # fmt: skip
    words = nn.Embedding(c.vocab_size, c.d_model)
    stem = PositionedTokens(words, nn.Embedding(c.max_len, c.d_model), c.dropout)
    model = Transformer(stem, Stack(blocks, nn.Identity()), gpt_shaped.reader(c, words))
    initialise(model, c.init_std)
    return model


def shape(config: Config) -> Shape:
    """What `nn.arithmetic` needs to know."""
    return gpt_text.shape(config, 4 * config.d_model, other_vectors=0)


HF_IGNORED = (r".*\.attn\.bias", r".*\.position_ids", r"position_ids")
"""Tensors of older files that carry nothing learned: the causal mask, the positions' numbers."""


def hf_names(config: Config) -> dict[str, Stored]:
    """Our parameter names and where each stands in a Hugging Face file; matrices are stored [in, out]."""
    layer = with_bias({
        "attention.out": "attn.c_proj", "feedforward.up": "mlp.c_fc", "feedforward.down": "mlp.c_proj",
        "attention_norm": "ln_1", "feedforward_norm": "ln_2",
    })  # fmt: skip
    for number, part in enumerate(("query", "key", "value")):
        for kind in ("weight", "bias"):
            layer[f"attention.{part}.{kind}"] = Stored(f"attn.c_attn.{kind}", part=number, cut=Equal(3, -1))
    patterns = {
        "stem.tokens.weight": Stored("transformer.tokens_embed.weight"),
        "stem.positions.weight": Stored("transformer.positions_embed.weight"),
    }
    for ours, place in layer.items():
        turned = ours.endswith("weight") and "norm" not in ours
        patterns[f"stack.blocks.{{}}.{ours}"] = replace(place.moved("transformer.h.{}."), transpose=turned)
    return gpt_text.hf_names(config, patterns)


def hf_tied(config: Config) -> dict[str, str]:
    """Copies that some files hold of a tensor, and the name of the original."""
    return gpt_text.hf_tied(config, "transformer.tokens_embed.weight")


def to_hf(config: Config) -> dict[str, Any]:
    """The settings as `transformers` names them; its 'gelu' of this family is the one by tanh."""
    return gpt_text.to_hf(config, HF_MODEL_TYPE, afn="gelu")


def from_hf(settings: dict[str, Any]) -> Config:
    """Our settings from `transformers`'. Raises UserError for what we do not do."""
    need(settings, HF_MODEL_TYPE, {"afn": ("gelu",), "n_special": (0,)})
    idle(settings, "n_ctx", "predict_special_tokens")  # in the published file: n_positions again, and nothing
    return gpt_text.from_hf(Config, settings, HF_ARCHITECTURES)
