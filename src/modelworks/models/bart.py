"""BART: the original order with learned positions and a norm after the embeddings (Lewis et al. 2020)."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

from ..base.config import Count
from ..nn.arithmetic import Shape
from ..nn.encoder_decoder import EncoderDecoder
from ..nn.layout import Layout
from ..nn.norm import LayerNorm
from ..nn.stack import PostNormBlock, PostNormCrossBlock
from ..nn.stems import PositionedTokens
from . import _seq2seq as seq2seq
from ._fresh import initialise
from ._seq2seq import HF_PREFIX, Seq2SeqShaped
from ._stored import Stored, need, unprefixed, with_bias
from .marian import hf_tied

__all__ = ["HF_PREFIX", "hf_tied"]
HF_MODEL_TYPE = "bart"
HF_ARCHITECTURES = {"BartForConditionalGeneration": "language", "BartModel": "none"}
HF_IGNORED = ()
OFFSET = 2
"""Rows of the position table before position 0, left over from a padding index."""


class Config(Seq2SeqShaped):
    """Shape of a BART."""

    vocab_size: Count = 50_265
    """Number of words, of source and target together."""
    max_len: Count = 1024
    """Positions that source and target have."""


def _published(d_model: int, n_layers: int, n_heads: int, **others: Any) -> Config:
    facts = {"n_layers": n_layers, "n_decoder_layers": n_layers} | others
    return Config(d_model=d_model, n_heads=n_heads, d_ff=4 * d_model, **facts)


PRESETS = {
    "bart-nano": _published(128, 3, 4, vocab_size=4096, max_len=512),
    "bart-base": _published(768, 6, 12),
    "bart-large": _published(1024, 12, 16),
}


class NormedTokens(PositionedTokens):
    """Words and positions, then a norm. int64 [B, T] -> [B, T, D]."""

    def __init__(self, norm: nn.Module, *parts: Any, **settings: Any) -> None:
        super().__init__(*parts, **settings)
        self.norm = norm

    def embed(self, tokens: Tensor, layout: Layout) -> Tensor:
        return self.norm(super().embed(tokens, layout))


def build(config: Config) -> EncoderDecoder:
    """The model with fresh weights, on torch's current device; one table serves source, target and head."""
    c = config
    words = nn.Embedding(c.vocab_size, c.d_model)

    def stem() -> NormedTokens:
        return NormedTokens(
            LayerNorm(c.d_model, seq2seq.EPS), words, nn.Embedding(c.max_len + OFFSET, c.d_model), c.dropout,
            scale=math.sqrt(c.d_model) if c.scale_embedding else 1.0, offset=OFFSET,
        )  # fmt: skip

    model = seq2seq.assemble(
        c, encoder_stem=stem(), decoder_stem=stem(), words=words, kinds=(PostNormBlock, PostNormCrossBlock)
    )
    initialise(model, c.init_std)
    return model


def shape(config: Config) -> Shape:
    """What `nn.arithmetic` needs to know."""
    side = {"other_vectors": 2 * config.d_model, "learned_positions": config.max_len + OFFSET}
    return seq2seq.shape(config, side, side)


def hf_names(config: Config) -> dict[str, Stored]:
    """Our parameter names and where each stands in a Hugging Face file."""
    own = {"encoder.stem.tokens.weight": Stored("model.shared.weight")}
    for side in ("encoder", "decoder"):
        own[f"{side}.stem.positions.weight"] = Stored(f"model.{side}.embed_positions.weight")
        own |= with_bias({f"{side}.stem.norm": f"model.{side}.layernorm_embedding"})
    if config.head == "language":
        own["decoder.head.bias"] = Stored("final_logits_bias")
    found = seq2seq.hf_names(config, own)
    return unprefixed(found, HF_PREFIX) if config.head == "none" else found


def to_hf(config: Config) -> dict[str, Any]:
    """The settings as `transformers` names them."""
    ids = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None, "decoder_start_token_id": 2}
    return seq2seq.to_hf(config, HF_MODEL_TYPE, max_position_embeddings=config.max_len, **ids)


def from_hf(settings: dict[str, Any]) -> Config:
    """Our settings from `transformers`'. Raises UserError for what we do not do."""
    need(
        settings, HF_MODEL_TYPE,
        {
            "normalize_embedding": (True,),
            "add_final_layer_norm": (False,),
            "add_bias_logits": (False,),
            "static_position_embeddings": (False,),
        },
    )  # fmt: skip
    return seq2seq.from_hf(Config, settings, HF_MODEL_TYPE, HF_ARCHITECTURES)
