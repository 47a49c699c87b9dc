from modelworks.models.deit import Config

from .vit import inputs  # noqa: F401

KIND = "vision"
BASE = Config(d_model=32, n_layers=2, n_heads=4, d_ff=48, image_size=12, patch_size=4, n_labels=5)
CONFIGS = {
    "distilled": BASE,
    "classes": BASE.model_copy(update={"head": "classes"}),
    "headless": BASE.model_copy(update={"head": "none", "n_labels": 1000}),
}
