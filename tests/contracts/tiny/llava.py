from typing import Any

import torch
from torch import Tensor

from modelworks.models.clip import _image
from modelworks.models.llava import Config

from .llama import BASE as TEXT

KIND = "vision_language"
EYE = _image(24, 3, n_layers=3, image_size=12, patch_size=4)
BASE = Config(image=EYE, text=TEXT.model_copy(update={"tie_word_embeddings": False}), image_token=96)
CONFIGS = {"patches": BASE, "all": BASE.model_copy(update={"features": "all", "feature_layer": -3})}


def inputs(config: Config) -> dict[str, Tensor]:
    """One image a row, in places that differ from row to row."""
    dice = torch.Generator().manual_seed(1)
    count = 9 if config.features == "patches" else 10
    tokens = torch.randint(1, 96, (3, 17), generator=dice)
    for row in range(3):
        tokens[row, 1 + row : 1 + row + count] = config.image_token
    return {"tokens": tokens, "pixels": torch.randn(3, 3, 12, 12, generator=dice)}


def theirs(model: Any, given: dict[str, Tensor]) -> dict[str, Tensor]:
    return {"logits": model(input_ids=given["tokens"], pixel_values=given["pixels"]).logits}
