"""Small models with a tokenizer, as directories on disk: what the export tests hand over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from modelworks.data.tokenizer import Tokenizer
from modelworks.hub import directory, presets

TEXT = [
    "os.path.join(a, *p): join two or more pathname components, inserting '/' as needed.",
    "你好，世界。标准库的文档。 😀 emoji and é accents — dashes",
    "def answer(question): return 'forty-two'  # the quick brown fox jumps over the lazy dog",
]
SHAPE = {"d_model": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "d_head": 16, "d_ff": 96, "max_len": 128}
GPT2 = {"d_model": 64, "n_layers": 2, "n_heads": 4, "d_ff": 96, "max_len": 128, "dropout": 0.0}
LLAMA3 = {"kind": "llama3", "factor": 8.0, "low_freq": 1.0, "high_freq": 4.0, "original_max_len": 32}
YARN = {"kind": "yarn", "factor": 4.0, "original_max_len": 32}
DECODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", GPT2),
    "gpt2-untied": ("gpt2", GPT2 | {"tie_word_embeddings": False}),
    "qwen3": ("qwen3", SHAPE | {"rope_theta": 10_000.0}),
    "qwen2": ("qwen2", SHAPE | {"rope_theta": 10_000.0, "n_kv_heads": 1}),
    "qwen2-linear": ("qwen2", SHAPE | {"rope_scaling": {"kind": "linear", "factor": 4.0}, "tie_word_embeddings": True}),
    "llama": ("llama", SHAPE),
    "llama-biases": ("llama", SHAPE | {"attention_bias": True, "mlp_bias": True, "n_kv_heads": 4}),
    "llama3": ("llama", SHAPE | {"rope_scaling": LLAMA3, "rope_theta": 500_000.0, "tie_word_embeddings": True}),
    "llama-yarn": ("llama", SHAPE | {"rope_scaling": YARN, "d_head": 32}),
    "qwen2-yarn": ("qwen2", SHAPE | {"rope_scaling": YARN, "rope_theta": 10_000.0}),
    "mistral": ("mistral", SHAPE | {"d_head": 32}),
}


def made(folder: Path, family: str, settings: dict[str, Any], pattern: str = "qwen2", seed: int = 1) -> Path:
    """A model with wide random weights, so that each part matters, and words that the tokenizer does not have."""
    tokenizer = Tokenizer.train(TEXT * 4, 400, pattern)
    config = presets.family_module(family).Config(vocab_size=tokenizer.vocab_size + 5, **settings)
    model = presets.family_module(family).build(config)
    widen(model, seed)
    with torch.no_grad():  # no word that the tokenizer lacks is ever the likeliest, as in a model that was trained
        for matrix in (model.stem.tokens.weight, getattr(getattr(model.head, "projection", None), "weight", None)):
            if matrix is not None and len(matrix) == config.vocab_size:
                matrix[tokenizer.vocab_size :] = 0
    directory.save(folder, model, family, config, tokenizer)
    return folder


def widen(model: torch.nn.Module, seed: int = 1) -> None:
    """Random weights everywhere, biases and norms included."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for weight in filter(lambda weight: weight.requires_grad, model.parameters()):
            noise = torch.randn_like(weight)
            weight.copy_(noise * 0.15 if weight.dim() > 1 else weight + noise * 0.1)
