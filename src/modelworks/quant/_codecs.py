"""How a packed matrix stands in a safetensors file: compressed-tensors' two layouts and bitsandbytes' NF4.

A codec turns (codes, scales) of `linear.QuantisedLinear` into the tensors that a file holds under `base.` and back.
N outputs, K inputs, G groups in a row.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from ..base.errors import DamagedError, UserError
from . import nf4

Read = Callable[[str], Tensor]
Shape = Callable[[str], list[int]]


class Codec(Protocol):
    """How one layout is written and read."""

    @property
    def ends(self) -> tuple[str, ...]:
        """What stands behind a layer's name in the file; the first marks a packed layer."""
        ...

    def encode(self, codes: Tensor, scales: Tensor) -> dict[str, Tensor]:
        """Tensors by their ends."""
        ...

    def decode(self, base: str, read: Read) -> tuple[Tensor, Tensor]:
        """(codes, scales) of layer `base`. Raises UserError, DamagedError."""
        ...

    def shapes(self, base: str, read: Read, shape: Shape) -> tuple[list[int], list[int]]:
        """Shapes of layer `base`'s codes and scales, without reading them."""
        ...


class PackQuantized:
    """compressed-tensors 'pack-quantized': whole numbers made unsigned, 32 bits of them in an int32, first lowest."""

    ends = ("weight_packed", "weight_scale", "weight_shape")

    def __init__(self, bits: int) -> None:
        self.bits = bits

    def encode(self, codes: Tensor, scales: Tensor) -> dict[str, Tensor]:
        rows, width = codes.shape
        unsigned = codes.view(torch.uint8) ^ 0x80 if self.bits == 8 else codes
        packed = F.pad(unsigned, (0, -width % 4)).contiguous().view(torch.int32)
        inputs = width * 8 // self.bits
        return {"weight_packed": packed, "weight_scale": scales, "weight_shape": torch.tensor([rows, inputs])}

    def decode(self, base: str, read: Read) -> tuple[Tensor, Tensor]:
        rows, inputs = read(f"{base}.weight_shape").tolist()
        packed, width = read(f"{base}.weight_packed"), inputs * self.bits // 8
        if packed.dtype != torch.int32 or list(packed.shape) != [rows, -(-width // 4)]:
            raise DamagedError(f"the tensor '{base}.weight_packed' is not what its weight_shape says; fetch it again.")
        codes = packed.view(torch.uint8)[:, :width]
        codes = (codes ^ 0x80).view(torch.int8) if self.bits == 8 else codes
        return codes.contiguous(), read(f"{base}.weight_scale")

    def shapes(self, base: str, read: Read, shape: Shape) -> tuple[list[int], list[int]]:
        rows, inputs = read(f"{base}.weight_shape").tolist()
        return [rows, inputs * self.bits // 8], shape(f"{base}.weight_scale")


class IntQuantized:
    """compressed-tensors 'int-quantized': an int8 matrix and its scales."""

    ends = ("weight_scale", "weight")

    def encode(self, codes: Tensor, scales: Tensor) -> dict[str, Tensor]:
        return {"weight": codes, "weight_scale": scales}

    def decode(self, base: str, read: Read) -> tuple[Tensor, Tensor]:
        codes = read(f"{base}.weight")
        if codes.dtype != torch.int8:
            raise DamagedError(f"the tensor '{base}.weight' is {codes.dtype}, not int8; fetch the model again.")
        return codes, read(f"{base}.weight_scale")

    def shapes(self, base: str, read: Read, shape: Shape) -> tuple[list[int], list[int]]:
        return shape(f"{base}.weight"), shape(f"{base}.weight_scale")


class BitsAndBytes:
    """bitsandbytes' NF4: bytes in one column, a float32 scale for each block, the levels, and a note in JSON.

    Scales that were quantised themselves ('double quantisation') are read, and written plain.
    """

    note = "weight.quant_state.bitsandbytes__nf4"
    ends = (note, "weight", "weight.absmax", "weight.quant_map", "weight.nested_absmax", "weight.nested_quant_map")

    def encode(self, codes: Tensor, scales: Tensor) -> dict[str, Tensor]:
        rows, width = codes.shape
        note = {
            "quant_type": "nf4",
            "blocksize": width * 2 // scales.shape[1],
            "dtype": str(scales.dtype).removeprefix("torch."),
            "shape": [rows, width * 2],
        }
        return {
            "weight": codes.reshape(-1, 1),
            "weight.absmax": scales.float().flatten(),
            "weight.quant_map": torch.tensor(nf4.LEVELS),
            self.note: torch.frombuffer(bytearray(json.dumps(note).encode()), dtype=torch.uint8),
        }

    def decode(self, base: str, read: Read) -> tuple[Tensor, Tensor]:
        note = self._note(base, read)
        rows, inputs = note["shape"]
        levels = read(f"{base}.weight.quant_map").float()
        if levels.shape != (16,) or (levels - torch.tensor(nf4.LEVELS)).abs().max() > 1e-6:
            raise UserError(f"the layer '{base}' has levels of its own, not those of NF4; it is not supported.")
        scales = read(f"{base}.weight.absmax")
        if "nested_offset" in note:
            outer = read(f"{base}.weight.nested_absmax").repeat_interleave(note["nested_blocksize"])[: len(scales)]
            scales = read(f"{base}.weight.nested_quant_map")[scales.int()] * outer + note["nested_offset"]
        kept = scales.to(getattr(torch, str(note["dtype"])))
        scales = kept if torch.equal(kept.float(), scales.float()) else scales
        codes = read(f"{base}.weight")
        if codes.numel() * 2 != rows * inputs or len(scales) * note["blocksize"] != rows * inputs:
            raise DamagedError(f"the tensor '{base}.weight' is not what its quant_state says; fetch it again.")
        return codes.view(rows, -1), scales.view(rows, -1)

    def shapes(self, base: str, read: Read, shape: Shape) -> tuple[list[int], list[int]]:
        note = self._note(base, read)
        rows, inputs = note["shape"]
        return [rows, inputs // 2], [rows, inputs // note["blocksize"]]

    def _note(self, base: str, read: Read) -> dict[str, Any]:
        try:
            note = json.loads(bytes(read(f"{base}.{self.note}").tolist()))
            if note["quant_type"] == "nf4" and len(note["shape"]) == 2 and note["blocksize"] > 0:
                return dict(note)
        except (ValueError, KeyError, TypeError):
            pass
        raise DamagedError(f"the tensor '{base}.{self.note}' is no note on NF4; fetch or make the model again.")
