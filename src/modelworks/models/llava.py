"""LLaVA: CLIP's eye, a projector, and a Llama that reads what it sees as tokens (Liu et al. 2023)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from torch import nn

from ..base.config import Count, Settings
from ..nn.arithmetic import Shape
from ..nn.vision_language import Illustrated, Projector, VisionLanguage
from . import _towers as towers
from . import clip, llama
from ._fresh import initialise
from ._stored import Stored, need, with_bias
from ._towers import ImageTower, under

HF_MODEL_TYPE = "llava"
HF_ARCHITECTURES = {"LlavaForConditionalGeneration": "language"}
HF_PREFIX = ""
HF_OLDER = {"vision_tower.": "vision_tower.vision_model."}
HF_IGNORED = (r".*\.position_ids", r".*rotary_emb\.inv_freq")


class Config(Settings):
    """Shape of a LLaVA."""

    image: ImageTower
    """The eye: a CLIP tower."""
    text: llama.Config
    """The decoder."""
    image_token: Count = 32_000
    """The word that stands in a text for one vector of an image."""
    feature_layer: int = -2
    """Whose output is looked at: -1 is the tower's last block, -2 the one before it."""
    features: Literal["patches", "all"] = "patches"
    """Without the class token, or with it."""

    @property
    def vocab_size(self) -> int:
        return self.text.vocab_size


def _published(name: str) -> Config:
    """LLaVA 1.5: a Vicuna with 64 more words than Llama 2, padded so."""
    text = llama.PRESETS[name].model_copy(update={"vocab_size": 32_064})
    return Config(image=clip.PRESETS["clip-vit-large-patch14-336"].image, text=text)


PRESETS = {
    "llava-nano": Config(image=clip.PRESETS["clip-nano"].image, text=llama.PRESETS["llama-nano"], image_token=4095),
    "llava-1.5-7b": _published("llama2-7b"),
    "llava-1.5-13b": _published("llama2-13b"),
}


def build(config: Config) -> VisionLanguage:
    """The model with fresh weights, on torch's current device."""
    c = config
    decoder = llama.build(c.text)
    decoder.stem = Illustrated(decoder.stem.tokens, c.image_token, c.text.dropout)
    projector = Projector(nn.Linear(c.image.d_model, c.text.d_model), nn.Linear(c.text.d_model, c.text.d_model))
    tower = clip.image_tower(c.image)
    for part in (tower, projector):
        initialise(part, 0.02)
    depth = c.image.n_layers + 1 + c.feature_layer
    return VisionLanguage(tower, projector, decoder, depth=depth, skip=1 if c.features == "patches" else 0)


def shape(config: Config) -> Shape:
    """What `nn.arithmetic` needs to know."""
    c = config
    text, width = llama.shape(c.text), c.text.d_model
    return replace(
        text,
        other_matrices=text.other_matrices + (c.image.d_model + width) * width,
        other_vectors=text.other_vectors + 2 * width,
        also=(clip.image_shape(c.image),),
    )


def hf_names(config: Config) -> dict[str, Stored]:
    """Our parameter names and where each stands in a Hugging Face file."""
    projector = {
        "projector.first": "multi_modal_projector.linear_1",
        "projector.second": "multi_modal_projector.linear_2",
    }
    return {
        **under("image.", "vision_tower.", clip.image_names(config.image)),
        **with_bias(projector),
        **under("decoder.", "language_model.", llama.hf_names(config.text)),
    }


def hf_tied(config: Config) -> dict[str, str]:
    """Copies that some files hold of a tensor, and the name of the original."""
    return {f"language_model.{a}": f"language_model.{b}" for a, b in llama.hf_tied(config.text).items()}


def to_hf(config: Config) -> dict[str, Any]:
    """The settings as `transformers` names them."""
    return {
        "model_type": HF_MODEL_TYPE,
        "text_config": llama.to_hf(config.text),
        "vision_config": towers.to_hf(config.image, "clip_vision_model"),
        "image_token_index": config.image_token,
        "image_seq_length": (config.image.image_size // config.image.patch_size) ** 2 + (config.features == "all"),
        "vision_feature_layer": config.feature_layer,
        "vision_feature_select_strategy": "default" if config.features == "patches" else "full",
        "projector_hidden_act": "gelu",
        "multimodal_projector_bias": True,
        "tie_word_embeddings": config.text.tie_word_embeddings,
    }


_USUAL = {"vocab_size": 32_000, "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32}
_USUAL |= {"intermediate_size": 11_008}
"""What the published files leave out of their text_config: Llama 2 7B's sizes."""


def from_hf(settings: dict[str, Any]) -> Config:
    """Our settings from `transformers`'. Raises UserError for what we do not do."""
    need(
        settings, HF_MODEL_TYPE,
        {
            "projector_hidden_act": ("gelu",),
            "multimodal_projector_bias": (True,),
            "vision_feature_select_strategy": ("default", "full"),
        },
    )  # fmt: skip
    for key, kind in (("text_config", "llama"), ("vision_config", "clip_vision_model")):
        need({key: isinstance(settings.get(key), dict)}, HF_MODEL_TYPE, {key: (True,)})
        need(settings[key], HF_MODEL_TYPE, {"model_type": (kind,)})
    text, image = settings["text_config"], settings["vision_config"]
    for key, value in _USUAL.items():
        text.setdefault(key, value)
    for key in ("vocab_size", "projection_dim"):
        image.get(key)  # of a whole CLIP; the eye alone has neither
    settings.get("image_seq_length")  # a count for whoever prepares the text; here the images say it
    need({"tie_word_embeddings": settings.get("tie_word_embeddings", False)}, HF_MODEL_TYPE,
         {"tie_word_embeddings": (text.get("tie_word_embeddings", False),)})  # fmt: skip
    layer = settings.get("vision_feature_layer", -2)
    need(
        {"vision_feature_layer": isinstance(layer, int) and layer < 0}, HF_MODEL_TYPE, {"vision_feature_layer": (True,)}
    )
    return Config(
        image=towers.from_hf(clip.PRESETS["clip-vit-large-patch14-336"].image, image, HF_MODEL_TYPE),
        text=llama.from_hf(text),
        image_token=settings.get("image_token_index", settings.get("image_token_id", 32_000)),
        feature_layer=layer,
        features="all" if settings.get("vision_feature_select_strategy") == "full" else "patches",
    )
