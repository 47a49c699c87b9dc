from typing import Any

import torch
from torch import Tensor

from modelworks.models.whisper import Config

KIND = "encoder_decoder"
BASE = Config(
    vocab_size=97, d_model=32, n_layers=2, n_decoder_layers=3, n_heads=4, d_ff=48, max_len=40, max_frames=17, n_mels=8
)
CONFIGS = {"language": BASE, "headless": BASE.model_copy(update={"head": "none"})}


def inputs(config: Config) -> dict[str, Tensor]:
    dice = torch.Generator().manual_seed(1)
    sound = torch.randn(3, config.n_mels, 2 * config.max_frames, generator=dice)
    return {"tokens": torch.randint(1, 97, (3, 11), generator=dice), "inputs": sound}


def theirs(model: Any, given: dict[str, Tensor]) -> dict[str, Tensor]:
    output = model(input_features=given["inputs"], decoder_input_ids=given["tokens"])
    found = {"logits": output.get("logits"), "hidden": output.get("last_hidden_state")}
    return {name: tensor for name, tensor in found.items() if tensor is not None}
