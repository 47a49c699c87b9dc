"""XLM-RoBERTa: RoBERTa over a hundred languages, with another vocabulary (Conneau et al. 2020)."""

from __future__ import annotations

from typing import Any

from ..base.config import Count
from . import roberta
from .roberta import HF_IGNORED, HF_OLDER, HF_PREFIX, build, hf_names, hf_tied, shape

__all__ = ["HF_IGNORED", "HF_OLDER", "HF_PREFIX", "build", "hf_names", "hf_tied", "shape"]

HF_MODEL_TYPE = "xlm-roberta"
HF_ARCHITECTURES = {f"XLM{name}": head for name, head in roberta.HF_ARCHITECTURES.items()}


class Config(roberta.Config):
    """Shape of an XLM-RoBERTa."""

    vocab_size: Count = 250002
    """Number of words."""


PRESETS = {
    "xlm-roberta-base": Config(),
    "xlm-roberta-large": Config(d_model=1024, n_layers=24, n_heads=16, d_ff=4096),
}


def to_hf(config: Config) -> dict[str, Any]:
    """The settings as `transformers` names them."""
    return roberta.to_hf(config) | {"model_type": HF_MODEL_TYPE}


def from_hf(settings: dict[str, Any]) -> Config:
    """Our settings from `transformers`'. Raises UserError for what we do not do."""
    return Config(**roberta.fields(settings, HF_MODEL_TYPE, HF_ARCHITECTURES))
