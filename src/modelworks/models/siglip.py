"""SigLIP: two towers taught by yes-or-no questions; the image is pooled by attention (Zhai et al. 2023)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..base.config import Settings
from ..nn.activation import ACTIVATIONS
from ..nn.arithmetic import Shape
from ..nn.feedforward import FeedForward
from ..nn.layout import Layout
from ..nn.masks import Bidirectional
from ..nn.norm import LayerNorm
from ..nn.pair import Pair
from . import _towers as towers
from ._fresh import initialise
from ._stored import Equal, Stored, need, with_bias
from ._towers import ImageTower, TextTower

HF_MODEL_TYPE = "siglip"
HF_ARCHITECTURES = {"SiglipModel": "pair"}
HF_PREFIX = ""
HF_IGNORED = (r".*\.position_ids",)


class Config(Settings):
    """Shape of a SigLIP model."""

    text: TextTower
    """The tower that reads; texts are padded to its whole length, and the last place stands for all of it."""
    image: ImageTower
    """The tower that looks; both towers are equally wide."""

    @property
    def vocab_size(self) -> int:
        return self.text.vocab_size


def _text(d_model: int = 768, n_heads: int = 12, d_ff: int = 3072, **changes: Any) -> TextTower:
    settings = {"vocab_size": 32000, "max_len": 64, "activation": "gelu_pytorch_tanh", "norm_eps": 1e-6} | changes
    return TextTower(d_model=d_model, n_heads=n_heads, d_ff=d_ff, **settings)


def _image(d_model: int = 768, n_heads: int = 12, d_ff: int = 3072, **changes: Any) -> ImageTower:
    settings = {"activation": "gelu_pytorch_tanh", "norm_eps": 1e-6} | changes
    return ImageTower(d_model=d_model, n_heads=n_heads, d_ff=d_ff, **settings)


def _published(d_model: int, n_heads: int, d_ff: int, n_layers: int, **image: Any) -> Config:
    sizes = (d_model, n_heads, d_ff)
    text = {"n_layers": n_layers} | ({"max_len": image.pop("max_len")} if "max_len" in image else {})
    return Config(text=_text(*sizes, **text), image=_image(*sizes, n_layers=n_layers, **image))


PRESETS = {
    "siglip-nano": Config(
        text=_text(128, 4, 512, vocab_size=4096, n_layers=4, max_len=32),
        image=_image(128, 4, 512, n_layers=4, image_size=32, patch_size=4),
    ),
    "siglip-base-patch16-224": _published(768, 12, 3072, 12),
    "siglip-base-patch16-384": _published(768, 12, 3072, 12, image_size=384),
    "siglip-large-patch16-256": _published(1024, 16, 4096, 24, image_size=256),
    "siglip-so400m-patch14-384": _published(1152, 16, 4304, 27, image_size=384, patch_size=14),
}


class RowEnd(nn.Module):
    """The vector of the last place of the row, padding or not, through `then`. [B, T, D] -> [B, D]."""

    def __init__(self, then: nn.Module) -> None:
        super().__init__()
        self.then = then

    def forward(self, hidden: Tensor, layout: Layout) -> Tensor:
        return self.then(hidden[:, -1])


class AttentionPool(nn.Module):
    """A learned question to all vectors, then a feed-forward part on a residual. [B, T, D] -> [B, D]."""

    def __init__(self, d_model: int, n_heads: int, norm: nn.Module, feedforward: nn.Module) -> None:
        super().__init__()
        self.probe = nn.Parameter(torch.zeros(1, 1, d_model))
        self.query, self.key, self.value, self.out = (nn.Linear(d_model, d_model) for _ in range(4))
        self.norm, self.feedforward, self.n_heads = norm, feedforward, n_heads

    def forward(self, hidden: Tensor, layout: Layout) -> Tensor:
        probe = self.probe.to(hidden.dtype).expand(len(hidden), -1, -1)
        heads = [
            part.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)
            for part in (self.query(probe), self.key(hidden), self.value(hidden))
        ]
        x = self.out(F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2))[:, 0]
        return x + self.feedforward(self.norm(x))


def build(config: Config) -> Pair:
    """The model with fresh weights, on torch's current device."""
    text, image = config.text, config.image
    norm = lambda: LayerNorm(image.d_model, image.norm_eps)  # noqa: E731
    feedforward = FeedForward(
        nn.Linear(image.d_model, image.d_ff), nn.Linear(image.d_ff, image.d_model), ACTIVATIONS[image.activation]
    )
    pool = AttentionPool(image.d_model, image.n_heads, norm(), feedforward)
    model = Pair(
        towers.text(text, Bidirectional(), RowEnd(nn.Linear(text.d_model, image.d_model))),
        towers.image(image, Bidirectional(), first=False, before=None, norm=norm(), pool=pool),
        nn.Identity(),
        nn.Identity(),
        nn.Parameter(torch.tensor([math.log(10.0)])),
        nn.Parameter(torch.tensor([-10.0])),
    )
    initialise(model, 0.02)
    with torch.no_grad():
        if model.bias is not None:
            model.bias.fill_(-10.0)  # most pairs do not go together (section 3.2 of the paper)
    return model


def shape(config: Config) -> Shape:
    """What `nn.arithmetic` needs to know."""
    t, i = config.text, config.image
    image = towers.shape(
        i,
        other_matrices=i.d_model * (4 * i.d_model + 2 * i.d_ff),
        other_vectors=i.d_model * (1 + 2 + 1 + 4 + 2 + 1) + i.d_ff,
    )
    return towers.shape(
        t,
        causal=False,
        other_matrices=t.d_model * i.d_model,
        other_vectors=2 * t.d_model + i.d_model + 2,
        also=(image,),
    )


def _pool_names() -> dict[str, Stored]:
    names = {"probe": Stored("head.probe")}
    for number, part in enumerate(("query", "key", "value")):
        for kind in ("weight", "bias"):
            names[f"{part}.{kind}"] = Stored(f"head.attention.in_proj_{kind}", part=number, cut=Equal(3, 0))
    return names | with_bias(
        {
            "out": "head.attention.out_proj",
            "norm": "head.layernorm",
            "feedforward.up": "head.mlp.fc1",
            "feedforward.down": "head.mlp.fc2",
        }
    )


def hf_names(config: Config) -> dict[str, Stored]:
    """Our parameter names and where each stands in a Hugging Face file."""
    text = towers.text_names(config.text) | with_bias({"head.pool.then": "head"})
    image = towers.image_names(config.image) | {"stem.project.bias": Stored("embeddings.patch_embedding.bias")}
    image |= with_bias({"stack.norm": "post_layernorm"})
    image |= {f"head.pool.{ours}": place for ours, place in _pool_names().items()}
    return {
        "scale": Stored("logit_scale"),
        "bias": Stored("logit_bias"),
        **towers.under("text.", "text_model.", text),
        **towers.under("image.", "vision_model.", image),
    }


def hf_tied(config: Config) -> dict[str, str]:
    """Nothing is tied."""
    return {}


def to_hf(config: Config) -> dict[str, Any]:
    """The settings as `transformers` names them."""
    text = towers.to_hf(config.text, "siglip_text_model") | {"projection_size": config.image.d_model}
    return {
        "model_type": HF_MODEL_TYPE,
        "text_config": text,
        "vision_config": towers.to_hf(config.image, "siglip_vision_model") | {"vision_use_head": True},
    }


def from_hf(settings: dict[str, Any]) -> Config:
    """Our settings from `transformers`'. Raises UserError for what we do not do."""
    for key in ("text_config", "vision_config"):
        need({key: isinstance(settings.get(key), dict)}, HF_MODEL_TYPE, {key: (True,)})
        need(settings, HF_MODEL_TYPE, {f"{key}_dict": (None, {})})
    need(settings["vision_config"], HF_MODEL_TYPE, {"vision_use_head": (True,)})
    config = Config(
        text=towers.from_hf(_text(), settings["text_config"], HF_MODEL_TYPE),
        image=towers.from_hf(_image(), settings["vision_config"], HF_MODEL_TYPE),
    )
    width = config.image.d_model
    need(settings["text_config"], HF_MODEL_TYPE, {"projection_size": (width,)})
    return config
