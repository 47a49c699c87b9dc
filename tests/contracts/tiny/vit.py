import torch

from modelworks.models.vit import Config

KIND = "vision"
BASE = Config(d_model=32, n_layers=2, n_heads=4, d_ff=48, image_size=12, patch_size=4, n_labels=5)
CONFIGS = {
    "classes": BASE,
    "headless": BASE.model_copy(update={"head": "none", "n_labels": 1000}),
    "no-bias": BASE.model_copy(update={"attention_bias": False, "activation": "gelu_new"}),
}


def inputs(config: Config) -> dict[str, torch.Tensor]:
    size = (3, config.channels, config.image_size, config.image_size)
    return {"tokens": torch.randn(size, generator=torch.Generator().manual_seed(1))}
