"""CLIP: a text and an image tower that meet in one space (Radford et al. 2021)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..base.config import Settings
from ..nn.arithmetic import Shape
from ..nn.heads import First, Last
from ..nn.masks import Bidirectional, Causal
from ..nn.norm import LayerNorm
from ..nn.pair import Pair
from ..nn.transformer import Transformer
from . import _towers as towers
from ._fresh import initialise
from ._stored import Stored, need, with_bias
from ._towers import ImageTower, TextTower

HF_MODEL_TYPE = "clip"
HF_ARCHITECTURES = {"CLIPModel": "pair"}
HF_PREFIX = ""
HF_IGNORED = (r".*\.position_ids",)


class Config(Settings):
    """Shape of a CLIP model."""

    text: TextTower
    """The tower that reads; a text ends with its end-of-text token, whose vector stands for all of it."""
    image: ImageTower
    """The tower that looks."""
    d_joint: int = 512
    """Width of the space in which they meet."""

    @property
    def vocab_size(self) -> int:
        return self.text.vocab_size


def _text(d_model: int = 512, n_heads: int = 8, **changes: Any) -> TextTower:
    settings = {"vocab_size": 49408, "max_len": 77, "activation": "quick_gelu", "norm_eps": 1e-5} | changes
    return TextTower(d_model=d_model, n_heads=n_heads, d_ff=4 * d_model, **settings)


def _image(d_model: int = 768, n_heads: int = 12, **changes: Any) -> ImageTower:
    settings = {"patch_size": 32, "activation": "quick_gelu", "norm_eps": 1e-5} | changes
    return ImageTower(d_model=d_model, n_heads=n_heads, d_ff=4 * d_model, **settings)


_LARGE = {"n_layers": 24, "patch_size": 14}
PRESETS = {
    "clip-nano": Config(
        text=_text(128, 4, vocab_size=4096, n_layers=4, max_len=32),
        image=_image(128, 4, n_layers=4, image_size=32, patch_size=4),
        d_joint=128,
    ),
    "clip-vit-base-patch32": Config(text=_text(), image=_image()),
    "clip-vit-base-patch16": Config(text=_text(), image=_image(patch_size=16)),
    "clip-vit-large-patch14": Config(text=_text(768, 12), image=_image(1024, 16, **_LARGE), d_joint=768),
    "clip-vit-large-patch14-336": Config(
        text=_text(768, 12), image=_image(1024, 16, image_size=336, **_LARGE), d_joint=768
    ),
}


def image_tower(tower: ImageTower) -> Transformer:
    """The tower that looks: a norm before the blocks, and one after them of the first vector alone."""
    norm = lambda: LayerNorm(tower.d_model, tower.norm_eps)  # noqa: E731
    return towers.image(tower, Bidirectional(), first=True, before=norm(), norm=nn.Identity(), pool=First(then=norm()))


def build(config: Config) -> Pair:
    """The model with fresh weights, on torch's current device."""
    c = config
    model = Pair(
        towers.text(c.text, Causal(), Last()),
        image_tower(c.image),
        nn.Linear(c.text.d_model, c.d_joint, bias=False),
        nn.Linear(c.image.d_model, c.d_joint, bias=False),
        nn.Parameter(torch.tensor(2.6592)),  # exp of it is 1 / 0.07
    )
    initialise(model, 0.02)
    return model


def shape(config: Config) -> Shape:
    """What `nn.arithmetic` needs to know."""
    c = config
    image = image_shape(c.image, other_matrices=c.image.d_model * c.d_joint)
    return towers.shape(
        c.text, other_matrices=c.text.d_model * c.d_joint, other_vectors=2 * c.text.d_model + 1, also=(image,)
    )


def image_shape(tower: ImageTower, **others: Any) -> Shape:
    """What `nn.arithmetic` needs to know of the tower that looks; `others` outside its blocks as given."""
    return towers.shape(tower, learned_positions=2, other_vectors=4 * tower.d_model, **others)


def image_names(tower: ImageTower) -> dict[str, Stored]:
    """Our names and theirs within the tower that looks."""
    own = {"stem.firsts.0": Stored("embeddings.class_embedding")}
    own |= with_bias({"stem.norm": "pre_layrnorm", "head.pool.then": "post_layernorm"})  # spelt so in the files
    return towers.image_names(tower) | own


def hf_names(config: Config) -> dict[str, Stored]:
    """Our parameter names and where each stands in a Hugging Face file."""
    return {
        "scale": Stored("logit_scale"),
        "text_projection.weight": Stored("text_projection.weight"),
        "image_projection.weight": Stored("visual_projection.weight"),
        **towers.under("text.", "text_model.", towers.text_names(config.text)),
        **towers.under("image.", "vision_model.", image_names(config.image)),
    }


def hf_tied(config: Config) -> dict[str, str]:
    """Nothing is tied."""
    return {}


def to_hf(config: Config) -> dict[str, Any]:
    """The settings as `transformers` names them."""
    joint = {"projection_dim": config.d_joint}
    return joint | {
        "model_type": HF_MODEL_TYPE,
        "text_config": towers.to_hf(config.text, "clip_text_model") | joint,
        "vision_config": towers.to_hf(config.image, "clip_vision_model") | joint,
    }


def from_hf(settings: dict[str, Any]) -> Config:
    """Our settings from `transformers`'. Raises UserError for what we do not do."""
    for key in ("text_config", "vision_config"):
        need({key: isinstance(settings.get(key), dict)}, HF_MODEL_TYPE, {key: (True,)})
        need(settings, HF_MODEL_TYPE, {f"{key}_dict": (None, {})})
        settings[key].get("projection_dim")  # only a tower that stands alone goes by its own
    return Config(
        text=towers.from_hf(_text(), settings["text_config"], HF_MODEL_TYPE),
        image=towers.from_hf(_image(), settings["vision_config"], HF_MODEL_TYPE),
        d_joint=settings.get("projection_dim", 512),
    )
