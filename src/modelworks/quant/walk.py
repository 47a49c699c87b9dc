"""Quantising a built model: which layers, by which method, and what became of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from ..base.errors import UserError, nearest
from . import awq, calibrate, gptq
from .calibrate import Batch, Seen
from .int4 import Int4Linear, clipped_scales, group_scales, nearest_codes, pack, round_groups
from .int8 import Int8DynamicLinear, Int8Linear, round_channels
from .linear import QuantisedLinear
from .nf4 import NF4Linear, round_normal

Rounding = Callable[[Tensor, int, torch.dtype], tuple[Tensor, Tensor]]


@dataclass(frozen=True, slots=True)
class Method:
    """A layer class, how its matrix is rounded without calibration, and which calibration it takes."""

    layer: type[QuantisedLinear]
    round: Rounding
    calibration: Literal["", "gptq", "awq"] = ""


def _channels(weight: Tensor, group: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return round_channels(weight, dtype)


METHODS = {
    "int8": Method(Int8Linear, _channels),
    "int8-dynamic": Method(Int8DynamicLinear, _channels),
    "int4": Method(Int4Linear, round_groups),
    "int4-gptq": Method(Int4Linear, round_groups, "gptq"),
    "int4-awq": Method(Int4Linear, round_groups, "awq"),
    "nf4": Method(NF4Linear, round_normal),
}


@dataclass(slots=True)
class Outcome:
    """What became of a model's matrices, by their names in it; bytes of all its weights, shared ones counted once."""

    method: str
    quantised: list[str] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)
    """Matrices that stayed float, and why."""
    bytes_before: int = 0
    bytes_after: int = 0
    folded: int = 0
    """Sets of layers whose inputs AWQ scaled."""


@torch.no_grad()
def quantise(
    model: nn.Module,
    method: str,
    *,
    group: int = 64,
    head: bool = False,
    batches: Sequence[Batch] = (),
    dtype: torch.dtype | None = None,
) -> Outcome:
    """Quantise the linear layers inside the model's blocks, in place.

    `group` inputs share a scale in the 4-bit methods. Embeddings, norms, stems and the head stay float; with
    `head` the language head is quantised too (one tied to the embedding gets a copy of its own, the embedding
    stays as it is). `batches` are needed by the methods that calibrate (int4-gptq, int4-awq). `dtype` is the number
    format that scales and all float weights get, the model's own where None. Layers that do not fit stay float and
    `Outcome.left` says why. Raises UserError for an unknown method or a missing calibration, or where no layer fits.
    """
    if method not in METHODS:
        raise UserError(f"quantisation '{method}' is not known{nearest(method, list(METHODS))}.")
    how = METHODS[method]
    if how.calibration and not batches:
        raise UserError(f"{method} is calibrated on text: give it some (--calibration), or take int4.")
    training = model.training
    model.eval()
    outcome = Outcome(method, bytes_before=weight_bytes(model))
    chosen = _chosen(model, how, group, head, outcome)
    if not chosen:
        reasons = [why for name, why in outcome.left.items() if ".blocks." in name]
        why = next(iter(reasons), "it has no linear layers in blocks")
        raise UserError(f"no layer of this model can be quantised by {method}: {why}.")
    if how.calibration:
        _calibrated(model, how, chosen, group, batches, dtype, outcome)
    for name in chosen:
        if isinstance(layer := model.get_submodule(name), nn.Linear):
            span = layer.in_features if how.layer.BITS == 8 else group
            _put(model, name, packed(layer, how.layer, *how.round(layer.weight, span, dtype or layer.weight.dtype)))
        outcome.quantised.append(name)
    if dtype is not None:
        model.to(dtype)
    model.train(training)
    outcome.bytes_after = weight_bytes(model)
    return outcome


def packed(layer: nn.Linear, kind: type[QuantisedLinear], codes: Tensor, scales: Tensor) -> QuantisedLinear:
    """A layer of `kind` in the place of a float one, with its bias."""
    group = layer.in_features // scales.shape[1]
    with torch.device("meta"):
        made = kind(layer.in_features, layer.out_features, layer.bias is not None, group, scales.dtype)
    made.fill(codes, scales, layer.bias)
    return made.train(layer.training)


def weight_bytes(model: nn.Module) -> int:
    """Bytes of a model's parameters and lasting buffers, shared ones counted once."""
    return sum({id(t): t.nbytes for t in model.state_dict(keep_vars=True).values()}.values())


def _chosen(model: nn.Module, how: Method, group: int, head: bool, outcome: Outcome) -> list[str]:
    """Names of the layers to quantise, in the order in which they run; notes those that stay float."""
    inside = {name: stack for name, stack in calibrate.stacks(model)}
    users: dict[int, int] = {}
    for part in model.modules():
        for weight in part.parameters(recurse=False):
            users[id(weight)] = users.get(id(weight), 0) + 1
    chosen = []
    for name, part in model.named_modules():
        matrices = [key for key, weight in part.named_parameters(recurse=False) if weight.dim() > 1]
        if not matrices:
            continue
        is_head = name.endswith("head.projection")
        why = ""
        if type(part) is not nn.Linear:
            why = f"{type(part).__name__} is no plain linear layer"
        elif not is_head and not any(name.startswith(f"{place}.blocks.") for place in inside):
            why = "it stands outside the blocks"
        elif is_head and not head:
            why = "the head stays float unless it is asked for"
        elif not is_head and users[id(part.weight)] > 1:
            why = "its matrix is another layer's too"
        else:
            span = part.in_features if how.layer.BITS == 8 else group
            why = how.layer.fits(part.in_features, span)
        if why:
            outcome.left[name] = why
        else:
            chosen.append(name)
    return chosen


def _calibrated(
    model: nn.Module,
    how: Method,
    chosen: Sequence[str],
    group: int,
    batches: Sequence[Batch],
    dtype: torch.dtype | None,
    outcome: Outcome,
) -> None:
    """Quantise the chosen layers inside blocks with what the batches show; the head is left to plain rounding."""
    for turn in calibrate.turns(model, batches):
        inside = {name: part for name, part in turn.block.named_modules() if type(part) is nn.Linear}
        seen, given = turn.watch(inside, gram=how.calibration == "gptq")
        if how.calibration == "awq":
            outcome.folded += awq.fold(turn, inside, seen, given, group)
        for name, layer in inside.items():
            if f"{turn.name}.{name}" in chosen and seen[name].count:
                codes, scales = _rounded(how, layer, seen[name], group, dtype or layer.weight.dtype)
                _put(turn.block, name, packed(layer, how.layer, codes, scales))


def _rounded(how: Method, layer: nn.Linear, seen: Seen, group: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    weight = layer.weight
    if seen.gram is not None:  # GPTQ: it makes up for errors itself; clipping would take away its room (measured)
        scales = group_scales(weight, group, dtype)
        return pack(gptq.compensated_codes(weight, scales, seen.gram)), scales
    scales = clipped_scales(weight, group, dtype, seen.sample())
    return pack(nearest_codes(weight, scales)), scales


def _put(model: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, layer)
