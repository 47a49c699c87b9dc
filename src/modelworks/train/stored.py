"""State as files: tensors in safetensors, hashed while they are written, and everything else in JSON."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

MARK = "__tensor__"
PIECE = 8 * 2**20  # bytes written at once: the interpreter is free in between, and a full disk is told soon
NAMES = {  # https://huggingface.co/docs/safetensors, "Format"
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> str:
    """A safetensors file of these tensors; returns its SHA-256, taken from memory and not from what the disk says.

    The library's own writer holds the interpreter for the whole file and reading it again for the hash costs twice
    the processor's time, both of which training would pay for. Raises TypeError for a number format that the file
    cannot hold and OSError as the system gives it.
    """
    digest = hashlib.sha256()
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        for data in _parts(tensors):
            for start in range(0, len(data), PIECE):
                piece = data[start : start + PIECE]
                digest.update(piece)
                write_all(handle, piece)
    finally:
        os.close(handle)
    return digest.hexdigest()


def write_all(handle: int, data: memoryview) -> None:
    """Write every byte. Raises OSError when the disk takes no more."""
    while data:
        data = data[os.write(handle, data) :]


def _parts(tensors: dict[str, Tensor]) -> Iterator[memoryview]:
    """The file's bytes: length of the header, header, then each tensor, the widest numbers first so that all align."""
    if sys.byteorder != "little":
        raise TypeError("safetensors files are little-endian and this machine is not")
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, Any] = {}
    end = 0
    for name in order:
        tensor = tensors[name]
        if tensor.dtype not in NAMES:
            raise TypeError(f"{name}: a checkpoint cannot hold numbers of {tensor.dtype}")
        begin, end = end, end + tensor.nbytes
        header[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield memoryview(len(text).to_bytes(8, "little") + text)
    for name in order:
        if tensors[name].numel():
            flat = tensors[name].detach().cpu().contiguous().view(-1)
            yield flat.view(torch.uint8).numpy().data


def pack(value: Any, tensors: dict[str, Tensor], path: str = "") -> Any:
    """Plain data for JSON, in new lists and dicts; every tensor moves to `tensors` under its path and leaves a mark.

    Raises TypeError for what would not come back the same: other types, and keys that are not strings.
    """
    if isinstance(value, Tensor):
        tensors[path] = value
        return {MARK: path}
    if isinstance(value, dict):
        if any(not isinstance(key, str) for key in value):
            raise TypeError(f"{path}: the keys of a state must be strings")
        return {key: pack(inner, tensors, f"{path}/{key}") for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [pack(inner, tensors, f"{path}/{number}") for number, inner in enumerate(value)]
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    raise TypeError(f"{path}: a state may not hold a {type(value).__name__}")


def unpack(value: Any, tensors: dict[str, Tensor]) -> Any:
    """The inverse of `pack` (tuples come back as lists); tensors are copies in memory of torch's own alignment."""
    if isinstance(value, dict):
        if set(value) == {MARK}:
            return tensors[value[MARK]].clone()
        return {key: unpack(inner, tensors) for key, inner in value.items()}
    return [unpack(inner, tensors) for inner in value] if isinstance(value, list) else value
