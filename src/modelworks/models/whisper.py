"""Whisper: a spectrogram in, text out; norms first, two convolutions for a stem (Radford et al. 2022)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..base.config import Count
from ..base.errors import UserError
from ..nn.arithmetic import Shape
from ..nn.encoder_decoder import EncoderDecoder
from ..nn.heads import LanguageHead
from ..nn.layout import Layout
from ..nn.norm import LayerNorm
from ..nn.stack import Block, CrossBlock
from ..nn.stems import PositionedTokens
from . import _seq2seq as seq2seq
from ._fresh import initialise
from ._seq2seq import HF_PREFIX, Seq2SeqShaped
from ._stored import Stored, need, unprefixed, with_bias

__all__ = ["HF_PREFIX"]
HF_MODEL_TYPE = "whisper"
HF_ARCHITECTURES = {"WhisperForConditionalGeneration": "language", "WhisperModel": "none"}
HF_IGNORED = ()


class Config(Seq2SeqShaped):
    """Shape of a Whisper model."""

    vocab_size: Count = 51_865
    """Number of words that it writes."""
    max_len: Count = 448
    """Positions of the text."""
    max_frames: Count = 1500
    """Positions of the sound; the spectrogram has twice as many frames (30 seconds at 10 ms)."""
    n_mels: Count = 80
    """Bands of the spectrogram."""
    dropout: float = 0.0
    """Share dropped from embeddings, attention and residual branches, in training only."""


def _published(d_model: int, n_layers: int, n_heads: int, **others: Any) -> Config:
    facts = {"n_layers": n_layers, "n_decoder_layers": n_layers, "d_ff": 4 * d_model} | others
    return Config(d_model=d_model, n_heads=n_heads, **facts)


PRESETS = {
    "whisper-nano": _published(128, 3, 4, vocab_size=4096, max_frames=300, max_len=128),
    "whisper-tiny": _published(384, 4, 6),
    "whisper-base": _published(512, 6, 8),
    "whisper-small": _published(768, 12, 12),
    "whisper-medium": _published(1024, 24, 16),
    "whisper-large-v2": _published(1280, 32, 20),
    "whisper-large-v3": _published(1280, 32, 20, n_mels=128, vocab_size=51_866),
    "whisper-large-v3-turbo": _published(1280, 32, 20, n_mels=128, vocab_size=51_866, n_decoder_layers=4),
}


class Sound(nn.Module):
    """A log-mel spectrogram [B, mels, 2T] through two convolutions, the second of stride 2, plus positions: [B, T, D].

    Raises UserError when the spectrogram is not as long as the model is made for: sound is padded with silence.
    """

    def __init__(self, first: nn.Conv1d, second: nn.Conv1d, positions: nn.Embedding, dropout: float) -> None:
        super().__init__()
        self.first, self.second, self.positions, self.dropout = first, second, positions, dropout

    def length(self, inputs: Tensor) -> int:
        frames, room = inputs.shape[-1], 2 * self.positions.num_embeddings
        if frames != room:
            raise UserError(f"the spectrogram has {frames} frames and this model reads {room}; pad or cut the sound.")
        return self.positions.num_embeddings

    def forward(self, sound: Tensor, layout: Layout, perturb: Tensor | None = None) -> Tensor:
        x = F.gelu(self.second(F.gelu(self.first(sound.to(self.first.weight.dtype)))))
        x = x.transpose(1, 2) + self.positions.weight
        if perturb is not None:
            x = x + perturb
        return F.dropout(x, self.dropout, self.training) if self.dropout else x


def build(config: Config) -> EncoderDecoder:
    """The model with fresh weights, on torch's current device."""
    c = config
    words = nn.Embedding(c.vocab_size, c.d_model)
    model = seq2seq.assemble(
        c,
        encoder_stem=Sound(
            nn.Conv1d(c.n_mels, c.d_model, 3, padding=1),
            nn.Conv1d(c.d_model, c.d_model, 3, stride=2, padding=1),
            nn.Embedding(c.max_frames, c.d_model),
            c.dropout,
        ),
        decoder_stem=PositionedTokens(words, nn.Embedding(c.max_len, c.d_model), c.dropout),
        words=words,
        kinds=(Block, CrossBlock),
        norm=lambda: LayerNorm(c.d_model, seq2seq.EPS),
        head=LanguageHead,
        key_bias=False,
    )
    initialise(model, c.init_std)
    _place(model.encoder.stem.positions)
    return model


def _place(positions: nn.Embedding) -> None:
    """Positions of the sound are sines and cosines that nobody trains (as in the original code)."""
    count, width = positions.weight.shape
    rates = 10_000.0 ** -(torch.arange(width // 2, dtype=torch.float64) / max(width // 2 - 1, 1))
    angle = torch.outer(torch.arange(count, dtype=torch.float64), rates)
    positions.weight.requires_grad_(False).copy_(torch.cat((angle.sin(), angle.cos()), 1))


def shape(config: Config) -> Shape:
    """What `nn.arithmetic` needs to know."""
    c = config
    sound = {
        "other_vectors": 4 * c.d_model,
        "learned_positions": c.max_frames,
        "other_matrices": 3 * c.d_model * (c.n_mels + c.d_model),
    }
    return seq2seq.shape(c, sound, {"other_vectors": 2 * c.d_model, "learned_positions": c.max_len}, key_bias=False)


def hf_names(config: Config) -> dict[str, Stored]:
    """Our parameter names and where each stands in a Hugging Face file."""
    own = {
        "decoder.stem.tokens.weight": Stored("model.decoder.embed_tokens.weight"),
        "encoder.stem.positions.weight": Stored("model.encoder.embed_positions.weight"),
        "decoder.stem.positions.weight": Stored("model.decoder.embed_positions.weight"),
        **with_bias({"encoder.stem.first": "model.encoder.conv1", "encoder.stem.second": "model.encoder.conv2"}),
        **with_bias({f"{side}.stack.norm": f"model.{side}.layer_norm" for side in ("encoder", "decoder")}),
    }
    found = seq2seq.hf_names(config, own, key_bias=False)
    return unprefixed(found, HF_PREFIX) if config.head == "none" else found


def hf_tied(config: Config) -> dict[str, str]:
    """Copies that some files hold of a tensor, and the name of the original."""
    return {"proj_out.weight": "model.decoder.embed_tokens.weight"} if config.head == "language" else {}


def to_hf(config: Config) -> dict[str, Any]:
    """The settings as `transformers` names them."""
    ids = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None, "decoder_start_token_id": 1}
    return seq2seq.to_hf(
        config, HF_MODEL_TYPE, num_mel_bins=config.n_mels, max_source_positions=config.max_frames,
        max_target_positions=config.max_len, **ids,
    )  # fmt: skip


def from_hf(settings: dict[str, Any]) -> Config:
    """Our settings from `transformers`'. Raises UserError for what we do not do."""
    need(settings, HF_MODEL_TYPE, {"use_weighted_layer_sum": (False,), "scale_embedding": (False,)})
    return seq2seq.from_hf(
        Config, settings, HF_MODEL_TYPE, HF_ARCHITECTURES, n_mels=settings.get("num_mel_bins", 80),
        max_frames=settings.get("max_source_positions", 1500), max_len=settings.get("max_target_positions", 448),
    )  # fmt: skip
