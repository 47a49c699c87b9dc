"""ViT: an image as a sentence of patches (Dosovitskiy et al. 2021)."""

from __future__ import annotations

from typing import Any, Literal

from torch import nn

from ..nn.arithmetic import Shape
from ..nn.heads import ClassHead, First, Headless
from ..nn.transformer import Transformer
from . import _vision_shaped as vision_shaped
from ._stored import Stored, with_bias
from ._vision_shaped import VisionShaped

HF_MODEL_TYPE = "vit"
HF_ARCHITECTURES = {"ViTForImageClassification": "classes", "ViTModel": "none"}
HF_PREFIX = "vit."
HF_IGNORED = (r".*embeddings\.mask_token",)


class Config(VisionShaped):
    """Shape of a ViT."""

    head: Literal["classes", "none"] = "classes"
    """What reads the stack out: scores of classes from the first vector, or nothing (and BERT's kind of pooler)."""


PRESETS = {
    "vit-nano": Config(d_model=128, n_layers=4, n_heads=4, d_ff=512, image_size=32, patch_size=4, n_labels=10),
    "vit-tiny-patch16-224": Config(d_model=192, n_heads=3, d_ff=768),
    "vit-small-patch16-224": Config(d_model=384, n_heads=6, d_ff=1536),
    "vit-base-patch16-224": Config(),
    "vit-base-patch16-384": Config(image_size=384),
    "vit-base-patch32-224": Config(patch_size=32),
    "vit-large-patch16-224": Config(d_model=1024, n_layers=24, n_heads=16, d_ff=4096),
    "vit-huge-patch14-224": Config(d_model=1280, n_layers=32, n_heads=16, d_ff=5120, patch_size=14),
}


def build(config: Config) -> Transformer:
    """The model with fresh weights, on torch's current device."""
    head: nn.Module = Headless(vision_shaped.pooler(config))
    if config.head == "classes":
        head = ClassHead(nn.Linear(config.d_model, config.n_labels), First())
    return vision_shaped.assemble(config, 1, head)


def shape(config: Config) -> Shape:
    """What `nn.arithmetic` needs to know."""
    return vision_shaped.shape(config, 1, 1 if config.head == "classes" else 0)


_LAYER = {
    "attention_norm": "layernorm_before",
    "attention.query": "attention.attention.query",
    "attention.key": "attention.attention.key",
    "attention.value": "attention.attention.value",
    "attention.out": "attention.output.dense",
    "feedforward_norm": "layernorm_after",
    "feedforward.up": "intermediate.dense",
    "feedforward.down": "output.dense",
}


def hf_names(config: Config) -> dict[str, Stored]:
    """Our parameter names and where each stands in a Hugging Face file."""
    prefix = "" if config.head == "none" else HF_PREFIX
    names = vision_shaped.names(config, prefix, "encoder.layer.{}.", _LAYER, ["cls_token"])
    return names | (with_bias({"head.projection": "classifier"}) if config.head == "classes" else {})


def hf_tied(config: Config) -> dict[str, str]:
    """Nothing is tied."""
    return {}


def to_hf(config: Config) -> dict[str, Any]:
    """The settings as `transformers` names them."""
    return vision_shaped.to_hf(config, HF_MODEL_TYPE)


def from_hf(settings: dict[str, Any]) -> Config:
    """Our settings from `transformers`'. Raises UserError for what we do not do."""
    return vision_shaped.from_hf(Config, settings, HF_MODEL_TYPE, HF_ARCHITECTURES)
