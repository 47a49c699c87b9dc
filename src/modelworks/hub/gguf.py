"""GGUF files, the format of llama.cpp: written from a model under its Hugging Face names, read back and compared.

Format: github.com/ggml-org/ggml, docs/gguf.md. The package `gguf` packs the bytes and knows llama.cpp's names of
tensors; which families are carried and how their matrices are laid out is in `gguf_families`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from torch import Tensor

from ..base import files
from ..base.errors import DamagedError, UserError
from ..data.tokenizer import Tokenizer
from . import gguf_families, gguf_words

FILE = "model.gguf"
FORMATS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "q8_0": "Q8_0"}
BLOCK = 32
"""Numbers that share a scale in Q8_0; a matrix whose rows are no multiple of it is kept as F16."""
ROUNDING = {"F32": 0.0, "F16": 2.0**-11, "BF16": 2.0**-8, "Q8_0": 0.5 / 127 + 2.0**-11}
"""The largest error of a format, as a share of the largest number among the 32 that it stands with: half a step;
Q8_0's scale is a float16 itself, which may be off by half a step too."""


def package() -> ModuleType:
    """The package `gguf`. Raises UserError where it is not installed."""
    try:
        import gguf
    except ImportError:
        raise UserError("GGUF files need the package gguf; install it with pip install 'modelworks[export]'.") from None
    return gguf


@dataclass(frozen=True, slots=True)
class Difference:
    """What reading back found: how many tensors, and the largest error, absolute and as a share of its block."""

    tensors: int
    absolute: float
    relative: float


def write(
    path: Path,
    settings: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    tokenizer: Tokenizer,
    *,
    name: str = "",
    dtype: str = "float32",
) -> None:
    """Write a model as GGUF. `settings` is what config.json holds, `tensors` are named as in Hugging Face files.

    `dtype` (a key of `FORMATS`) is the format of the matrices; vectors, norms and learned positions stay float32.
    Raises UserError for a family or a tokenizer that GGUF cannot carry exactly, or without the package `gguf`;
    FailureError when the disk is full.
    """
    gguf = package()
    carried = gguf_families.find(settings)
    vocabulary = gguf_words.fields(tokenizer, int(settings["vocab_size"]))
    with files.disk_errors(path):
        writer = gguf.GGUFWriter(path, carried.architecture)
        writer.add_name(name or "model")
        writer.add_file_type(getattr(gguf.LlamaFileType, _file_type(FORMATS[dtype])))
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        for key, value in carried.settings(settings).items():
            _add(writer, f"{carried.architecture}.{key}", value)
        for key, value in vocabulary.items():
            _add(writer, f"tokenizer.{key}", value)
        for theirs, array in laid_out(settings, tensors):
            kind = getattr(gguf.GGMLQuantizationType, _kind(theirs, array, FORMATS[dtype]))
            writer.add_tensor(theirs, gguf.quants.quantize(array, kind), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        files.fsync(path)


def laid_out(settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, np.ndarray]]:
    """llama.cpp's name and float32 array of every tensor. Raises UserError for one that it has no place for."""
    gguf = package()
    carried = gguf_families.find(settings)
    kind = next(kind for kind, word in gguf.MODEL_ARCH_NAMES.items() if word == carried.architecture)
    names = gguf.get_tensor_name_map(kind, int(carried.settings(settings)["block_count"]))
    for name, tensor in tensors.items():
        theirs = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if theirs is None:
            raise UserError(f"the tensor '{name}' has no place in a GGUF file of the kind {carried.architecture}.")
        array = carried.arrange(name, tensor.detach().cpu().float(), settings).contiguous().numpy()
        yield theirs, array
    yield from carried.added(settings)


def _kind(name: str, array: np.ndarray, wanted: str) -> str:
    """The format of one tensor: llama.cpp wants vectors, norms and learned positions in float32."""
    if array.ndim == 1 or name.startswith("position_embd") or "norm" in name:
        return "F32"
    return "F16" if wanted == "Q8_0" and array.shape[-1] % BLOCK else wanted


def _file_type(wanted: str) -> str:
    return "ALL_F32" if wanted == "F32" else f"MOSTLY_{wanted}"


def _add(writer: Any, key: str, value: Any) -> None:
    """Add one fact; a list is an array, a whole number is unsigned."""
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def compare(path: Path, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Difference:
    """Read every tensor of `path` back and hold it against the model.

    Raises DamagedError when one is missing, unknown, mis-shaped or further off than its format rounds.
    """
    gguf = package()
    try:
        found = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    except Exception as error:  # the reader raises whatever numpy does on a file that was cut short
        raise DamagedError(f"{path}: cannot be read as GGUF ({error!s:.200}); export it again.") from None
    absolute = relative = 0.0
    wanted = dict(laid_out(settings, tensors))
    if set(found) != set(wanted):
        odd = min(set(found) ^ set(wanted))
        raise DamagedError(
            f"{path}: the tensor '{odd}' is {'missing' if odd in wanted else 'unknown'}; export it again."
        )
    for name, array in wanted.items():
        kind = found[name].tensor_type
        back = gguf.quants.dequantize(found[name].data, kind).reshape(-1)
        if back.size != array.size or tuple(found[name].shape[::-1]) != array.shape:
            raise DamagedError(f"{path}: the tensor '{name}' has another shape than the model's; export it again.")
        error = np.abs(back.reshape(array.shape) - array)
        share = float(_shares(error, array).max(initial=0.0))
        absolute, relative = max(absolute, float(error.max(initial=0.0))), max(relative, share)
        if not share <= ROUNDING[kind.name]:  # so that a NaN is caught too
            raise DamagedError(f"{path}: the tensor '{name}' is off by {share:.2g} of its size; export it again.")
    return Difference(len(wanted), absolute, relative)


def _shares(error: np.ndarray, array: np.ndarray) -> np.ndarray:
    """The largest error of each block of 32 (of the row, where it cannot be cut so), as a share of its largest."""
    width = BLOCK if array.shape[-1] % BLOCK == 0 else array.shape[-1]
    worst, largest = error.reshape(-1, width).max(1), np.abs(array).reshape(-1, width).max(1)
    return np.where(worst == 0, 0.0, worst / np.maximum(largest, np.finfo(np.float32).tiny))
