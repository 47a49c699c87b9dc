import torch

from modelworks.models.bert import Config

KIND = "encoder"
BASE = Config(vocab_size=97, d_model=32, n_layers=2, n_heads=4, d_ff=48, max_len=256, dropout=0.0)
CONFIGS = {
    "masked_lm": BASE,
    "headless": BASE.model_copy(update={"head": "none", "n_types": 3}),
    "classes": BASE.model_copy(update={"head": "classes", "n_labels": 3, "activation": "gelu_new"}),
    "tokens": BASE.model_copy(update={"head": "tokens", "n_labels": 5, "norm_eps": 1e-5, "activation": "relu"}),
}


def inputs(config: Config) -> dict[str, torch.Tensor]:
    dice = torch.Generator().manual_seed(1)
    return {
        "tokens": torch.randint(1, config.vocab_size, (3, 17), generator=dice),
        "types": torch.randint(config.n_types, (3, 17), generator=dice),
    }
