"""GPT-2: layer norm, learned positions, full attention with biases, GELU (Radford et al. 2019)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import nn

from ..nn.activation import tanh_gelu
from ..nn.arithmetic import Shape
from ..nn.masks import Causal
from ..nn.norm import LayerNorm
from ..nn.stack import Stack
from ..nn.stems import PositionedTokens
from ..nn.transformer import Transformer
from . import _gpt_shaped as gpt_shaped
from . import _gpt_text as gpt_text
from ._fresh import initialise
from ._gpt_shaped import TENSOR_PLAN
from ._gpt_text import HF_PREFIX, GPTText
from ._stored import Equal, Stored, idle, missing, need

__all__ = ["HF_PREFIX", "TENSOR_PLAN"]

HF_MODEL_TYPE = "gpt2"
HF_ARCHITECTURES = {"GPT2LMHeadModel": "language", "GPT2Model": "none", "GPT2ForSequenceClassification": "classes"}


class Config(GPTText):
    """Shape of a GPT-2 model; weights that write to the residual stream start smaller, by sqrt(2 n_layers)."""

    d_ff: int
    """Inner width of the feed-forward part."""


PRESETS = {
    "gpt2-nano": Config(vocab_size=256, d_model=128, n_layers=4, n_heads=4, d_ff=512, max_len=256, dropout=0.0),
    "gpt2": Config(d_model=768, n_layers=12, n_heads=12, d_ff=3072),
    "gpt2-medium": Config(d_model=1024, n_layers=24, n_heads=16, d_ff=4096),
    "gpt2-large": Config(d_model=1280, n_layers=36, n_heads=20, d_ff=5120),
    "gpt2-xl": Config(d_model=1600, n_layers=48, n_heads=25, d_ff=6400),
}


def build(config: Config) -> Transformer:
    """The model with fresh weights, on torch's current device."""
    mask = Causal()
    return assemble(config, [mask] * config.n_layers)


def assemble(config: Config, masks: Sequence[nn.Module]) -> Transformer:
    """The model whose layers see what `masks` say, one each."""
    c = config
    blocks = [
        gpt_shaped.block(
            layer, d_model=c.d_model, n_heads=c.n_heads, d_ff=c.d_ff, mask=masks[layer], activation=tanh_gelu,
            eps=c.norm_eps, dropout=c.dropout,
        )
        for layer in range(c.n_layers)
    ]  # fmt: skip
    words = nn.Embedding(c.vocab_size, c.d_model)
    stem = PositionedTokens(words, nn.Embedding(c.max_len, c.d_model), c.dropout)
    stack = Stack(blocks, LayerNorm(c.d_model, c.norm_eps))
    model = Transformer(stem, stack, gpt_shaped.reader(c, words))
    initialise(model, c.init_std, writers=c.init_std / math.sqrt(2 * c.n_layers))
    return model


def shape(config: Config) -> Shape:
    """What `nn.arithmetic` needs to know."""
    return gpt_text.shape(config, config.d_ff, other_vectors=2 * config.d_model)


def _layer() -> dict[str, Stored]:
    """Names of one block: matrices are stored [in, out]; query, key and value side by side in `c_attn`."""
    out = {}
    for number, ours in enumerate(("query", "key", "value")):
        out[f"attention.{ours}.weight"] = Stored("attn.c_attn.weight", transpose=True, part=number, cut=Equal(3, -1))
        out[f"attention.{ours}.bias"] = Stored("attn.c_attn.bias", part=number, cut=Equal(3, -1))
    for ours, theirs in {
        "attention.out": "attn.c_proj",
        "feedforward.up": "mlp.c_fc",
        "feedforward.down": "mlp.c_proj",
    }.items():
        out[f"{ours}.weight"] = Stored(f"{theirs}.weight", transpose=True)
        out[f"{ours}.bias"] = Stored(f"{theirs}.bias")
    for ours, theirs in {"attention_norm": "ln_1", "feedforward_norm": "ln_2"}.items():
        out[f"{ours}.weight"], out[f"{ours}.bias"] = Stored(f"{theirs}.weight"), Stored(f"{theirs}.bias")
    return out


HF_IGNORED = (r".*\.attn\.bias", r".*\.attn\.masked_bias")
"""Tensors of older files that carry nothing learned: the causal mask."""


def hf_names(config: Config) -> dict[str, Stored]:
    """Our parameter names and where each stands in a Hugging Face file."""
    patterns = {
        "stem.tokens.weight": Stored("transformer.wte.weight"),
        "stem.positions.weight": Stored("transformer.wpe.weight"),
    }
    patterns |= {f"stack.blocks.{{}}.{ours}": place.moved("transformer.h.{}.") for ours, place in _layer().items()}
    patterns |= {f"stack.norm.{kind}": Stored(f"transformer.ln_f.{kind}") for kind in ("weight", "bias")}
    return gpt_text.hf_names(config, patterns)


def hf_tied(config: Config) -> dict[str, str]:
    """Copies that some files hold of a tensor, and the name of the original."""
    return gpt_text.hf_tied(config, "transformer.wte.weight")


def to_hf(config: Config) -> dict[str, Any]:
    """The settings as `transformers` names them."""
    return gpt_text.to_hf(config, HF_MODEL_TYPE, n_inner=config.d_ff, activation_function="gelu_new")


def from_hf(settings: dict[str, Any]) -> Config:
    """Our settings from `transformers`'. Raises UserError for what we do not do."""
    need(
        settings, HF_MODEL_TYPE,
        {"activation_function": ("gelu_new", "gelu_pytorch_tanh"), "scale_attn_weights": (True,),
         "scale_attn_by_inverse_layer_idx": (False,), "add_cross_attention": (False,)},
    )  # fmt: skip
    idle(settings, "n_ctx")  # older files say n_positions twice
    missing(settings, ("n_embd",))
    d_ff = settings.get("n_inner") or 4 * settings["n_embd"]
    return gpt_text.from_hf(Config, settings, HF_ARCHITECTURES, d_ff=d_ff)
