"""Quantised models on disk: what config.json says of them, and which tensors of the file make which layer.

int8 and int4 are written as compressed-tensors, nf4 as bitsandbytes, so that transformers and vLLM open them; a file
of theirs opens here where it means the same as one of our layers, and is refused by name where it does not.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..base.errors import UserError
from ..models._stored import Equal, Sizes, Stored
from ._codecs import BitsAndBytes, Codec, IntQuantized, PackQuantized
from .int4 import Int4Linear
from .int8 import Int8DynamicLinear, Int8Linear
from .linear import QuantisedLinear
from .nf4 import NF4Linear


@dataclass(frozen=True, slots=True)
class Packing:
    """How one model's packed layers stand on disk: their class, the file's layout, and what config.json says."""

    layer: type[QuantisedLinear]
    codec: Codec
    settings: dict[str, Any]

    def names(self, model: nn.Module, names: Mapping[str, Stored]) -> dict[str, Stored]:
        """Where the contents of a quantised `model` stand, from where those of the float one do."""
        out = dict(names)
        for path, part in model.named_modules():
            if isinstance(part, QuantisedLinear):
                stored = out.pop(f"{path}.weight")
                for own in ("codes", "scales"):
                    out[f"{path}.{own}"] = Stored(f"{_base(stored)}.{own}", part=stored.part, cut=_by_rows(stored))
        return out

    def encoded(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors under their file's names, codes and scales among them, as the file holds them."""
        out: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            base, _, own = name.rpartition(".")
            if own == "codes":
                found = self.codec.encode(tensor, tensors[f"{base}.scales"])
                out |= {f"{base}.{end}": piece.contiguous() for end, piece in found.items()}
            elif own != "scales":
                out[name] = tensor
        return out

    def opened(
        self, model: nn.Module, names: Mapping[str, Stored], shelf: Any, prefix: str
    ) -> tuple[dict[str, Stored], Unpacked]:
        """Give a float `model` (on the meta device) packed layers where the file, `shelf`, has them.

        `prefix` is what a file may leave out at the start of its names. Returns where the model's contents stand, and
        the file as if it held codes and scales. Raises UserError, DamagedError.
        """
        unpacked = Unpacked(shelf, self.codec)
        for path, part in list(model.named_modules()):
            stored = names.get(f"{path}.weight")
            if type(part) is not nn.Linear or stored is None:
                continue
            base = _base(stored)
            spellings = (base, base.removeprefix(prefix), prefix + base)
            found = next((name for name in spellings if name in unpacked.bases), None)
            if found is not None:
                group = part.in_features // max(1, unpacked.shape(f"{found}.scales")[-1])
                if why := self.layer.fits(part.in_features, group):
                    raise UserError(f"the layer '{found}' cannot be read: {why}.")
                parent, _, last = path.rpartition(".")
                made = self.layer(part.in_features, part.out_features, part.bias is not None, group, part.weight.dtype)
                setattr(model.get_submodule(parent), last, made)
        return self.names(model, names), unpacked


class Unpacked:
    """A file of packed tensors as if it held `codes` and `scales`: what `hub.tensors` reads from."""

    def __init__(self, shelf: Any, codec: Codec) -> None:
        self.shelf, self.codec = shelf, codec
        mark = f".{codec.ends[0]}"
        self.bases = {name.removesuffix(mark) for name in shelf.handles if name.endswith(mark)}
        ends = {f"{base}.{end}" for base in self.bases for end in codec.ends}
        self.virtual = {f"{base}.{own}" for base in self.bases for own in ("codes", "scales")}
        self.handles = dict.fromkeys([name for name in shelf.handles if name not in ends]) | dict.fromkeys(self.virtual)
        self._last: tuple[str, tuple[Tensor, Tensor]] | None = None

    def shape(self, name: str) -> list[int]:
        if name not in self.virtual:
            return list(self.shelf.shape(name))
        base, _, own = name.rpartition(".")
        return self.codec.shapes(base, self._needed, self._shape)[own == "scales"]

    def read(self, name: str) -> Tensor:
        if name not in self.virtual:
            return self.shelf.read(name)
        base, _, own = name.rpartition(".")
        if self._last is None or self._last[0] != base:
            self._last = base, self.codec.decode(base, self._needed)
        return self._last[1][own == "scales"]

    def _needed(self, name: str) -> Tensor:
        self._shape(name)
        return self.shelf.read(name)

    def _shape(self, name: str) -> list[int]:
        if name not in self.shelf.handles:
            raise UserError(f"the tensor '{name}' of a packed layer is missing; fetch or make the model again.")
        return list(self.shelf.shape(name))


def _base(stored: Stored) -> str:
    return stored.name.removesuffix(".weight")


def _by_rows(stored: Stored) -> Any:
    """How our rows share a stored tensor that stands as [out, in], whichever way round the float one does."""
    cut = stored.cut
    if isinstance(cut, Equal | Sizes):
        return replace(cut, axis=0)
    return cut


def packing_of(
    model: nn.Module, names: Mapping[str, Stored], left: Iterable[str], copies: Iterable[str] = ()
) -> Packing:
    """How to save a quantised model. `left` are the layers that stayed float (`Outcome.left`).

    `copies` are names in a file of matrices that stand there under another name (a tied head). Raises UserError where
    the model has packed layers of no kind, or of several.
    """
    layers = [part for part in model.modules() if isinstance(part, QuantisedLinear)]
    kinds = {type(part) for part in layers}
    if len(kinds) != 1:
        raise UserError(f"the model has packed layers of {len(kinds)} kinds and a folder holds one; quantise it anew.")
    kind = kinds.pop()
    ignored = {name.removesuffix(".weight") for name in copies}
    for path in left:
        stored = names.get(f"{path}.weight")
        if stored is not None and not isinstance(model.get_submodule(path), nn.Embedding):
            # each expert is a layer of its own there: their parent stands for all
            ignored.add(_base(stored).partition(".{}")[0] if stored.stack else _base(stored))
    if kind is NF4Linear:
        return Packing(kind, BitsAndBytes(), _bitsandbytes(sorted(ignored), layers[0].scales.dtype))
    ignored |= {f"re:{re.escape(name)}[.].*" for name in ignored if name.endswith(".experts")}
    group = layers[0].group if kind is Int4Linear else None
    codec: Codec = IntQuantized() if kind is Int8DynamicLinear else PackQuantized(kind.BITS)
    name = "int-quantized" if kind is Int8DynamicLinear else "pack-quantized"
    settings = _compressed_tensors(name, kind.BITS, group, kind is Int8DynamicLinear, sorted(ignored))
    return Packing(kind, codec, settings)


def _compressed_tensors(name: str, bits: int, group: int | None, dynamic: bool, ignored: list[str]) -> dict[str, Any]:
    number = {"num_bits": bits, "type": "int", "symmetric": True}
    weights = number | {"strategy": "group" if group else "channel", "group_size": group, "dynamic": False}
    inputs = number | {"strategy": "token", "group_size": None, "dynamic": True}
    whole = {"targets": ["Linear"], "weights": weights, "input_activations": inputs if dynamic else None}
    return {
        "quant_method": "compressed-tensors",
        "format": name,
        "quantization_status": "compressed",
        "config_groups": {"group_0": whole | {"output_activations": None, "format": name}},
        "ignore": ignored,
        "kv_cache_scheme": None,
    }


def _bitsandbytes(ignored: list[str], dtype: torch.dtype) -> dict[str, Any]:
    return {
        "quant_method": "bitsandbytes",
        "load_in_4bit": True,
        "load_in_8bit": False,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": False,
        "bnb_4bit_compute_dtype": str(dtype).removeprefix("torch."),
        "bnb_4bit_quant_storage": "uint8",
        "llm_int8_skip_modules": ignored,
    }


def packing_from(settings: Any) -> Packing:
    """What a config.json's `quantization_config` says. Raises UserError where that is none of our layers."""
    if not isinstance(settings, Mapping):
        raise UserError(
            "config.json: 'quantization_config' is not a mapping of settings; fetch or make the model again."
        )
    method = settings.get("quant_method")
    if method == "bitsandbytes":
        _want(settings, "", load_in_4bit=(True,), bnb_4bit_quant_type=("nf4",), bnb_4bit_quant_storage=("uint8", None))
        return Packing(NF4Linear, BitsAndBytes(), dict(settings))
    if method != "compressed-tensors":
        raise UserError(
            f"config.json: the model is quantised by '{method}', and only compressed-tensors and bitsandbytes can be "
            "opened; take the float model and quantise it with modelworks export --quant."
        )
    groups = settings.get("config_groups") or {}
    if len(groups) != 1:
        raise UserError(f"config.json: the layers are quantised in {len(groups)} ways, and one is what can be opened.")
    scheme = next(iter(groups.values()))
    _want(settings, "", format=("pack-quantized", "int-quantized"), kv_cache_scheme=(None,), sparsity_config=(None, {}))
    _want(scheme, "config_groups.", output_activations=(None,))
    weights, inputs = scheme.get("weights") or {}, scheme.get("input_activations")
    place = "config_groups.weights."
    _want(weights, place, num_bits=(4, 8), type=("int",), symmetric=(True, None), dynamic=(False, None),
          actorder=(None, "weight", "static", False))  # fmt: skip
    bits, name = weights["num_bits"], settings["format"]
    _want(weights, place, strategy=("group",) if bits == 4 else ("channel",))
    if inputs is not None:
        place = "config_groups.input_activations."
        _want(inputs, place, num_bits=(8,), type=("int",), symmetric=(True, None), dynamic=(True,), strategy=("token",))
        _want(weights, "config_groups.weights.", num_bits=(8,))
    if name == "int-quantized":
        _want(weights, "config_groups.weights.", num_bits=(8,))
    kind: type[QuantisedLinear] = Int4Linear if bits == 4 else Int8Linear if inputs is None else Int8DynamicLinear
    return Packing(kind, IntQuantized() if name == "int-quantized" else PackQuantized(bits), dict(settings))


def _want(settings: Mapping[str, Any], place: str, **allowed: tuple[Any, ...]) -> None:
    for key, values in allowed.items():
        if settings.get(key) not in values:
            raise UserError(
                f"config.json: 'quantization_config.{place}{key}' is {settings.get(key)!r}, and only {values[0]!r} can "
                "be opened; take the float model and quantise it with modelworks export --quant."
            )
