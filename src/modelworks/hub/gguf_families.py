"""What GGUF carries of our families: llama.cpp's name of the architecture, its settings, the layout of matrices."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from ..base.errors import UserError, nearest
from ..models._stored import rope

Facts = Mapping[str, Any]
"""What config.json holds."""


def _nothing(settings: Facts) -> Iterator[tuple[str, np.ndarray]]:
    yield from ()


def _as_it_is(name: str, tensor: Tensor, settings: Facts) -> Tensor:
    return tensor


@dataclass(frozen=True, slots=True)
class Carried:
    """One architecture of llama.cpp.

    `settings` gives its keys without the architecture's name before them; `arrange` turns a tensor under its
    Hugging Face name into llama.cpp's layout [out, in]; `added` are tensors that only llama.cpp has.
    """

    architecture: str
    settings: Callable[[Facts], dict[str, Any]]
    arrange: Callable[[str, Tensor, Facts], Tensor] = _as_it_is
    added: Callable[[Facts], Iterator[tuple[str, np.ndarray]]] = _nothing


def find(settings: Facts) -> Carried:
    """The architecture for a config.json. Raises UserError for a family that is not carried exactly."""
    kind = str(settings.get("model_type"))
    if kind not in CARRIED:
        raise UserError(
            f"GGUF does not carry the family {kind}{nearest(kind, list(CARRIED))}; export it with --to hf or onnx."
        )
    return CARRIED[kind]


def _head_width(settings: Facts) -> int:
    return int(settings.get("head_dim") or settings["hidden_size"] // settings["num_attention_heads"])


def _decoder(settings: Facts) -> dict[str, Any]:
    """Settings that Llama, Mistral, Qwen2 and Qwen3 share. Raises UserError for what llama.cpp does otherwise."""
    positions, longest = rope(dict(settings)), int(settings["max_position_embeddings"])
    kinds = ("default", "linear", "yarn")
    if settings["model_type"] in ("llama", "mistral"):
        kinds += ("llama3",)
    if positions["rope_type"] not in kinds:
        raise UserError(f"GGUF export does not carry rotary positions of the kind '{positions['rope_type']}'.")
    slides = settings["model_type"] == "mistral" or settings.get("use_sliding_window")
    if slides and (settings.get("sliding_window") or longest) < longest:
        raise UserError(
            f"llama.cpp sees the whole text and this model only {settings['sliding_window']} tokens of it; "
            "set sliding_window to null in config.json where texts are never longer."
        )
    heads = settings["num_attention_heads"]
    out = {
        "vocab_size": settings["vocab_size"],
        "context_length": longest,
        "embedding_length": settings["hidden_size"],
        "block_count": settings["num_hidden_layers"],
        "feed_forward_length": settings["intermediate_size"],
        "attention.head_count": heads,
        "attention.head_count_kv": settings.get("num_key_value_heads") or heads,
        "attention.key_length": _head_width(settings),
        "attention.value_length": _head_width(settings),
        "attention.layer_norm_rms_epsilon": float(settings["rms_norm_eps"]),
        "rope.dimension_count": _head_width(settings),
        "rope.freq_base": float(positions["rope_theta"]),
    }
    if positions["rope_type"] in ("linear", "yarn"):
        out |= {"rope.scaling.type": positions["rope_type"], "rope.scaling.factor": float(positions["factor"])}
    if positions["rope_type"] == "yarn":
        _usual_yarn(positions)
        out["rope.scaling.original_context_length"] = positions["original_max_position_embeddings"]
    return out


def _usual_yarn(positions: Facts) -> None:
    """Raises UserError for a rule of YaRN whose borders or sharpening are not those that llama.cpp takes."""
    usual = {"beta_fast": 32.0, "beta_slow": 1.0, "attention_factor": None, "truncate": True}
    for key, value in usual.items():
        if positions.get(key, value) != value:
            raise UserError(f"GGUF export carries YaRN with its usual '{key}' only, not {positions[key]!r}.")


def _qwen2(settings: Facts) -> dict[str, Any]:
    heads, width = settings["num_attention_heads"], settings["hidden_size"]
    if heads * _head_width(settings) != width:
        raise UserError(f"llama.cpp wants a Qwen2 whose heads together are as wide as the model ({width}).")
    return _decoder(settings)


def _interleaved(name: str, tensor: Tensor, settings: Facts) -> Tensor:
    """Llama's queries and keys: rotary pairs stand side by side in llama.cpp, half a head apart in Hugging Face."""
    if not any(f".{part}_proj." in name for part in "qk"):
        return tensor
    pairs = tensor.unflatten(0, (-1, 2, _head_width(settings) // 2))
    return pairs.transpose(1, 2).reshape(tensor.shape)


def _stretched(settings: Facts) -> Iterator[tuple[str, np.ndarray]]:
    """Llama 3's stretched positions, as llama.cpp takes them: what each frequency is divided by.

    Long waves are slowed by `factor`, short ones stay, those between go over smoothly (Llama 3 report, 2024).
    """
    rule = rope(dict(settings))
    if rule["rope_type"] != "llama3":
        return
    width, factor = _head_width(settings), float(rule["factor"])
    low, high = float(rule["low_freq_factor"]), float(rule["high_freq_factor"])
    inverse = float(rule["rope_theta"]) ** -(np.arange(0, width, 2, dtype=np.float64) / width)
    turns = float(rule["original_max_position_embeddings"]) * inverse / (2 * math.pi)
    kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
    yield "rope_freqs.weight", (1 / ((1 - kept) / factor + kept)).astype(np.float32)


def _gpt2(settings: Facts) -> dict[str, Any]:
    width = settings["n_embd"]
    return {
        "vocab_size": settings["vocab_size"],
        "context_length": settings["n_positions"],
        "embedding_length": width,
        "block_count": settings["n_layer"],
        "feed_forward_length": settings.get("n_inner") or 4 * width,
        "attention.head_count": settings["n_head"],
        "attention.layer_norm_epsilon": float(settings["layer_norm_epsilon"]),
    }


def _turned(name: str, tensor: Tensor, settings: Facts) -> Tensor:
    """GPT-2 keeps its blocks' matrices as [in, out]."""
    return tensor.t() if tensor.dim() == 2 and ".h." in f".{name}" else tensor


CARRIED = {
    "gpt2": Carried("gpt2", _gpt2, _turned),
    "llama": Carried("llama", _decoder, _interleaved, _stretched),
    "mistral": Carried("llama", _decoder, _interleaved, _stretched),
    "qwen2": Carried("qwen2", _qwen2),
    "qwen3": Carried("qwen3", _decoder),
}
"""By Hugging Face's model_type."""
