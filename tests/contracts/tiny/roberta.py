import torch

from modelworks.models.roberta import Config

KIND = "encoder"
BASE = Config(vocab_size=97, d_model=32, n_layers=2, n_heads=4, d_ff=48, max_len=256, dropout=0.0)
CONFIGS = {
    "masked_lm": BASE.model_copy(update={"activation": "relu"}),
    "headless": BASE.model_copy(update={"head": "none", "pad_id": 2}),
    "classes": BASE.model_copy(update={"head": "classes", "n_labels": 3, "n_types": 2}),
    "tokens": BASE.model_copy(update={"head": "tokens", "n_labels": 5}),
}


def inputs(config: Config) -> dict[str, torch.Tensor]:
    """Without the padding's id, by which their class finds padding."""
    return {"tokens": torch.randint(3, config.vocab_size, (3, 17), generator=torch.Generator().manual_seed(1))}
