"""GPT-3: GPT-2 with layers that see everything and layers that see a band, in turns (Brown et al. 2020, table 2.1).

Its weights were never published and no other program has the family: presets, exact sizes and training only. A
directory of it opens here and nowhere else. What the paper leaves open or prints twice, and what is done here:

- "alternating dense and locally banded sparse attention patterns ..., similar to the Sparse Transformer": neither
  the width of the band nor which comes first is said. Here the first layer is dense and the second banded, and the
  band is 128 tokens, itself included: the stride that the Sparse Transformer (Child et al. 2019) takes for text.
- 13B has d_model 5140 in the table, which is not 40 heads of 128. Here it is 5120, which also makes the 12,850
  million parameters of the paper's table D.1 (5140 would make 12,940).
- XL has 24 heads of 128 in the table, which is not its d_model of 2048. Here it has 16 heads of 128, which makes
  the 1,320 million of table D.1 (24 heads would make 1,517).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..base.config import Count
from ..nn.arithmetic import Shape
from ..nn.masks import Causal
from ..nn.transformer import Transformer
from . import gpt2
from ._stored import head_of, missing
from .gpt2 import HF_IGNORED, HF_PREFIX, TENSOR_PLAN, hf_names, hf_tied

__all__ = ["HF_IGNORED", "HF_PREFIX", "TENSOR_PLAN", "hf_names", "hf_tied"]
HF_MODEL_TYPE = "gpt3"
HF_ARCHITECTURES = {"GPT3LMHeadModel": "language", "GPT3Model": "none", "GPT3ForSequenceClassification": "classes"}


class Config(gpt2.Config):
    """Shape of a GPT-3 model."""

    max_len: Count = 2048
    """Positions that the model has."""
    dropout: float = 0.0
    """Share dropped from embeddings, attention and residual branches, in training only."""
    band: int = 128
    """How many tokens each token sees in every second layer, itself included."""


def _published(d_model: int, n_layers: int, n_heads: int) -> Config:
    return Config(d_model=d_model, n_layers=n_layers, n_heads=n_heads, d_ff=4 * d_model)


PRESETS = {
    "gpt3-nano": Config(vocab_size=256, d_model=128, n_layers=4, n_heads=4, d_ff=512, max_len=256, band=32),
    "gpt3-125m": _published(768, 12, 12),
    "gpt3-350m": _published(1024, 24, 16),
    "gpt3-760m": _published(1536, 24, 16),
    "gpt3-1.3b": _published(2048, 24, 16),
    "gpt3-2.7b": _published(2560, 32, 32),
    "gpt3-6.7b": _published(4096, 32, 32),
    "gpt3-13b": _published(5120, 40, 40),
    "gpt3-175b": _published(12288, 96, 96),
}
"""One of ours that trains on two cores, and the paper's eight: Small, Medium, Large, XL, 2.7B, 6.7B, 13B, 175B."""


def build(config: Config) -> Transformer:
    """The model with fresh weights, on torch's current device."""
    dense, banded = Causal(), Causal(config.band)
    return gpt2.assemble(config, [banded if layer % 2 else dense for layer in range(config.n_layers)])


def shape(config: Config) -> Shape:
    """What `nn.arithmetic` needs to know."""
    windows = tuple(config.band if layer % 2 else 0 for layer in range(config.n_layers))
    return replace(gpt2.shape(config), windows=windows)


def to_hf(config: Config) -> dict[str, Any]:
    """The settings as GPT-2's are named, and the band."""
    return gpt2.to_hf(config) | {"model_type": HF_MODEL_TYPE, "attention_band": config.band}


def from_hf(settings: dict[str, Any]) -> Config:
    """Our settings from those of `to_hf`. Raises UserError for what we do not do."""
    missing(settings, ("attention_band",))
    found = gpt2.from_hf(settings).model_dump()
    return Config(**found | {"head": head_of(settings, HF_ARCHITECTURES), "band": settings["attention_band"]})
