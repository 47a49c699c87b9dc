"""A tiny real model for the tests of infer and serve: qwen3-nano's shape, random weights, a tokenizer trained here."""

from __future__ import annotations

import functools

import torch

from modelworks.data.tokenizer import Tokenizer
from modelworks.infer.language_model import LanguageModel
from modelworks.models import qwen3

TEXT = [
    "os.path.join(a, *p): join two or more pathname components, inserting '/' as needed.",
    "你好，世界。标准库的文档。 😀 emoji and é accents — dashes",
    "def answer(question): return 'forty-two'  # the quick brown fox jumps over the lazy dog",
]


@functools.cache
def language_model(max_len: int = 256, seed: int = 0) -> LanguageModel:
    """Weights drawn wide, those zero at the start included, so that every token of the context matters."""
    torch.set_num_threads(1)  # so small that a second thread only waits, for ever on a busy machine
    tokenizer = Tokenizer.train(TEXT * 4, 400)
    preset = qwen3.PRESETS["qwen3-nano"]
    config = preset.model_copy(update={"vocab_size": tokenizer.vocab_size + 13, "max_len": max_len, "n_layers": 2})
    torch.manual_seed(seed)
    model = qwen3.build(config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 2:
                torch.nn.init.normal_(weight, std=0.12)
    return LanguageModel(model, tokenizer, "qwen3", config)
