from typing import Any

import torch
from torch import Tensor

from modelworks.models.clip import Config, _image, _text

KIND = "pair"
SMALL = {"n_layers": 2, "d_ff": 48}
CONFIGS = {
    "pair": Config(
        text=_text(32, 4, vocab_size=97, n_layers=2, max_len=20),
        image=_image(32, 4, n_layers=2, image_size=12, patch_size=4),
        d_joint=24,
    )
}


def inputs(config: Config) -> dict[str, Tensor]:
    """Texts that end, as CLIP's do, with the word that marks their end."""
    dice = torch.Generator().manual_seed(1)
    tokens = torch.randint(1, config.vocab_size - 1, (3, 9), generator=dice)
    tokens[:, -1] = config.vocab_size - 1
    size = config.image.image_size
    return {"tokens": tokens, "pixels": torch.randn(3, 3, size, size, generator=dice)}


def theirs(model: Any, given: dict[str, Tensor]) -> dict[str, Tensor]:
    output = model(input_ids=given["tokens"], pixel_values=given["pixels"])
    return {"logits": output.logits_per_text, "texts": output.text_embeds, "images": output.image_embeds}
