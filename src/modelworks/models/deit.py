"""DeiT: a ViT with a second learned vector, which learns from a teacher (Touvron et al. 2021)."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor, nn

from ..nn.arithmetic import Shape
from ..nn.heads import ClassHead, First, Headless
from ..nn.layout import Layout
from ..nn.transformer import Transformer
from . import _vision_shaped as vision_shaped
from ._stored import Stored, with_bias
from ._vision_shaped import VisionShaped
from .vit import _LAYER

HF_MODEL_TYPE = "deit"
HF_ARCHITECTURES = {
    "DeiTForImageClassificationWithTeacher": "distilled", "DeiTForImageClassification": "classes", "DeiTModel": "none",
}  # fmt: skip
HF_PREFIX = "deit."
HF_IGNORED = (r".*embeddings\.mask_token",)


class Config(VisionShaped):
    """Shape of a DeiT."""

    head: Literal["distilled", "classes", "none"] = "distilled"
    """What reads the stack out: the mean of two classifiers on the two first vectors, one on the first, or nothing."""


PRESETS = {
    "deit-tiny-distilled-patch16-224": Config(d_model=192, n_heads=3, d_ff=768),
    "deit-small-distilled-patch16-224": Config(d_model=384, n_heads=6, d_ff=1536),
    "deit-base-distilled-patch16-224": Config(),
}


class Two(nn.Module):
    """The first two vectors of each row. [B, T, D] -> [B, 2, D]."""

    def forward(self, hidden: Tensor, layout: Layout) -> Tensor:
        return hidden[:, :2]


class Teamed(nn.Module):
    """The mean of what two classifiers say, each of its own vector. [B, 2, D] -> [B, C]."""

    def __init__(self, first: nn.Linear, second: nn.Linear) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, pooled: Tensor) -> Tensor:
        return (self.first(pooled[:, 0]) + self.second(pooled[:, 1])) / 2


def build(config: Config) -> Transformer:
    """The model with fresh weights, on torch's current device."""
    c = config
    head: nn.Module = Headless(vision_shaped.pooler(c))
    if c.head == "classes":
        head = ClassHead(nn.Linear(c.d_model, c.n_labels), First())
    elif c.head == "distilled":
        head = ClassHead(Teamed(nn.Linear(c.d_model, c.n_labels), nn.Linear(c.d_model, c.n_labels)), Two())
    return vision_shaped.assemble(c, 2, head)


def shape(config: Config) -> Shape:
    """What `nn.arithmetic` needs to know."""
    return vision_shaped.shape(config, 2, {"none": 0, "classes": 1, "distilled": 2}[config.head])


def hf_names(config: Config) -> dict[str, Stored]:
    """Our parameter names and where each stands in a Hugging Face file."""
    prefix = "" if config.head == "none" else HF_PREFIX
    names = vision_shaped.names(config, prefix, "encoder.layer.{}.", _LAYER, ["cls_token", "distillation_token"])
    heads = {
        "none": {},
        "classes": {"head.projection": "classifier"},
        "distilled": {"head.projection.first": "cls_classifier", "head.projection.second": "distillation_classifier"},
    }
    return names | with_bias(heads[config.head])


def hf_tied(config: Config) -> dict[str, str]:
    """Nothing is tied."""
    return {}


def to_hf(config: Config) -> dict[str, Any]:
    """The settings as `transformers` names them."""
    return vision_shaped.to_hf(config, HF_MODEL_TYPE)


def from_hf(settings: dict[str, Any]) -> Config:
    """Our settings from `transformers`'. Raises UserError for what we do not do."""
    return vision_shaped.from_hf(Config, settings, HF_MODEL_TYPE, HF_ARCHITECTURES)
