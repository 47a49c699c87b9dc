"""The original transformer (Vaswani et al. 2017): norms after each part, sinusoidal positions; on disk as Marian."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ..base.config import Count
from ..base.errors import UserError
from ..nn.arithmetic import Shape
from ..nn.encoder_decoder import EncoderDecoder
from ..nn.layout import Layout
from ..nn.stack import PostNormBlock, PostNormCrossBlock
from ..nn.stems import Tokens
from . import _seq2seq as seq2seq
from ._fresh import initialise
from ._seq2seq import HF_PREFIX, Seq2SeqShaped
from ._stored import Stored, need, unprefixed

__all__ = ["HF_PREFIX"]
HF_MODEL_TYPE = "marian"
HF_ARCHITECTURES = {"MarianMTModel": "language", "MarianModel": "none"}
HF_IGNORED = (r".*\.embed_positions\.weight",)
"""Sinusoids that older files hold: they are worked out here."""


class Config(Seq2SeqShaped):
    """Shape of an original transformer."""

    max_len: Count = 512
    """Positions that source and target have."""
    activation: str = "relu"
    """What stands between the feed-forward matrices; the paper's is ReLU, Marian's models use swish."""
    scale_embedding: bool = True
    """Embeddings are multiplied by sqrt(d_model) (section 3.4 of the paper)."""


def _paper(d_model: int, n_heads: int, d_ff: int, dropout: float = 0.1, **others: Any) -> Config:
    facts = {"vocab_size": 37_000, "n_layers": 6, "n_decoder_layers": 6} | others
    return Config(d_model=d_model, n_heads=n_heads, d_ff=d_ff, dropout=dropout, **facts)


PRESETS = {
    "transformer-nano": _paper(128, 4, 512, vocab_size=4096, n_layers=3, n_decoder_layers=3),
    "transformer-base": _paper(512, 8, 2048),
    "transformer-big": _paper(1024, 16, 4096, dropout=0.3),
    "opus-mt-en-de": _paper(512, 8, 2048, vocab_size=58_101, activation="swish"),
    "opus-mt-en-zh": _paper(512, 8, 2048, vocab_size=65_001, activation="swish"),
}
"""transformer-base and -big are rows of the paper's table 3 (its vocabulary: about 37,000 byte pairs)."""


class SinusoidalTokens(Tokens):
    """Token embeddings plus sines and cosines of the position, the sines first. int64 [B, T] -> [B, T, D].

    The table is worked out in float64 and is no part of the model's weights. Raises UserError when a text is
    longer than `max_len`.
    """

    def __init__(self, tokens: nn.Embedding, max_len: int, dropout: float, scale: float) -> None:
        super().__init__(tokens, dropout, scale)
        self.max_len = max_len
        half = torch.arange(0, tokens.embedding_dim, 2, dtype=torch.float64, device="cpu") / tokens.embedding_dim
        angle = torch.outer(torch.arange(max_len, dtype=torch.float64, device="cpu"), 10_000.0**-half)
        self._table = torch.cat((angle.sin(), angle.cos()), 1).float()

    def embed(self, tokens: Tensor, layout: Layout) -> Tensor:
        if layout.end > self.max_len:
            raise UserError(
                f"the text has {layout.end} tokens and this model has {self.max_len} positions; "
                "shorten it or use a model with a larger max_len."
            )
        x = super().embed(tokens, layout)
        if self._table.device != x.device:
            self._table = self._table.to(x.device)
        return x + self._table[layout.positions].to(x.dtype)


def build(config: Config) -> EncoderDecoder:
    """The model with fresh weights, on torch's current device; one table serves source, target and head."""
    c = config
    words = nn.Embedding(c.vocab_size, c.d_model)
    stem = lambda: SinusoidalTokens(  # noqa: E731
        words, c.max_len, c.dropout, math.sqrt(c.d_model) if c.scale_embedding else 1.0
    )
    model = seq2seq.assemble(
        c, encoder_stem=stem(), decoder_stem=stem(), words=words, kinds=(PostNormBlock, PostNormCrossBlock)
    )
    initialise(model, c.init_std)
    return model


def shape(config: Config) -> Shape:
    """What `nn.arithmetic` needs to know."""
    return seq2seq.shape(config, {"other_vectors": 0}, {"other_vectors": 0})


def hf_names(config: Config) -> dict[str, Stored]:
    """Our parameter names and where each stands in a Hugging Face file."""
    own = {"encoder.stem.tokens.weight": Stored("model.shared.weight")}
    if config.head == "language":
        own["decoder.head.bias"] = Stored("final_logits_bias")
    found = seq2seq.hf_names(config, own)
    return unprefixed(found, HF_PREFIX) if config.head == "none" else found


def hf_tied(config: Config) -> dict[str, str]:
    """Copies that some files hold of a tensor, and the name of the original."""
    prefix = "" if config.head == "none" else HF_PREFIX
    copies = [f"{prefix}{side}.embed_tokens.weight" for side in ("encoder", "decoder")] + ["lm_head.weight"]
    return dict.fromkeys(copies, f"{prefix}shared.weight")


def to_hf(config: Config) -> dict[str, Any]:
    """The settings as `transformers` names them."""
    return seq2seq.to_hf(
        config, HF_MODEL_TYPE, max_position_embeddings=config.max_len, share_encoder_decoder_embeddings=True,
        decoder_vocab_size=config.vocab_size, pad_token_id=0, decoder_start_token_id=0,
    )  # fmt: skip


def from_hf(settings: dict[str, Any]) -> Config:
    """Our settings from `transformers`'. Raises UserError for what we do not do."""
    need(
        settings, HF_MODEL_TYPE,
        {
            "share_encoder_decoder_embeddings": (True,),
            "decoder_vocab_size": (settings.get("vocab_size"), None),
            "static_position_embeddings": (True,),
            "normalize_embedding": (False,),
            "add_bias_logits": (False,),
            "add_final_layer_norm": (False,),
            "extra_pos_embeddings": (0, 1, 2, settings.get("vocab_size")),
        },
    )  # fmt: skip
    return seq2seq.from_hf(Config, settings, HF_MODEL_TYPE, HF_ARCHITECTURES)
