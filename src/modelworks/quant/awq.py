"""AWQ: inputs that are loud get finer steps, by scales that a norm before them takes back (Lin et al. 2024).

Only what leaves the float model's function as it was is folded, and that is tried out on the calibration's first batch:
a norm whose output goes into linear layers and nowhere else, and the `up` half of a gated feed-forward part before
its `down`. K inputs, N outputs, M rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ..nn.feedforward import GatedFeedForward
from ..nn.norm import LayerNorm, RMSNorm
from .calibrate import Seen, Turn
from .int4 import group_scales, nearest_codes

POWERS = [step / 10 for step in range(11)]
GAIN = 0.9
"""A fold must leave no more than this share of the error: on a sample, less is luck."""
SAME = 1e-2
"""Relative error of a block's output up to which a fold has changed nothing but rounding."""


def fold(
    turn: Turn, layers: Mapping[str, nn.Linear], seen: Mapping[str, Seen], given: Mapping[str, list[Tensor]], group: int
) -> int:
    """Scale the inputs of the block's linear `layers` where that helps; returns how many sets of them were scaled.

    `seen` and `given` are what `Turn.watch` found. Changes float weights and norms in place.
    """
    parts = dict(turn.block.named_modules())
    done = 0
    for names in _sharing(layers, seen):
        source = seen[names[0]].sources[0]
        norm = next((parts[n] for n, out in given.items() if out[0] is source and type(parts[n]) in NORMS), None)
        if norm is not None:
            before = [norm.weight, getattr(norm, "bias", None)]
            done += _try(turn, before, [layers[n] for n in names], [seen[n] for n in names], group)
    for part in parts.values():
        if isinstance(part, GatedFeedForward) and {part.up, part.down} <= set(layers.values()):
            down = next(name for name, layer in layers.items() if layer is part.down)
            done += _try(turn, [part.up.weight, part.up.bias], [part.down], [seen[down]], group)
    return done


NORMS = (RMSNorm, LayerNorm)


def _sharing(layers: Mapping[str, nn.Linear], seen: Mapping[str, Seen]) -> list[list[str]]:
    """The layers in sets that read the very same tensor."""
    sets: dict[int, list[str]] = {}
    for name in layers:
        if seen[name].sources:
            sets.setdefault(id(seen[name].sources[0]), []).append(name)
    return list(sets.values())


def _try(
    turn: Turn, before: Sequence[Tensor | None], layers: Sequence[nn.Linear], seen: Sequence[Seen], group: int
) -> bool:
    """Fold the best scales for `layers` into what stands before them; put all back where the block then differs."""
    scales = best_scales([layer.weight for layer in layers], seen[0].sample(), group)
    if scales is None:
        return False
    written = [tensor for tensor in before if tensor is not None]
    kept = [tensor.detach().clone() for tensor in (*written, *(layer.weight for layer in layers))]
    wanted = turn.outputs(1)[0]
    for tensor in written:
        tensor.div_(scales.to(tensor.dtype).view(-1, *[1] * (tensor.dim() - 1)))
    for layer in layers:
        layer.weight.mul_(scales.to(layer.weight.dtype))
    found = turn.outputs(1)[0]
    if (found - wanted).norm() <= SAME * wanted.norm():
        for one in seen:
            one.rows = [rows / scales for rows in one.rows]
        return True
    for tensor, old in zip((*written, *(layer.weight for layer in layers)), kept, strict=True):
        tensor.copy_(old)
    return False


def best_scales(weights: Sequence[Tensor], rows: Tensor, group: int) -> Tensor | None:
    """Factors [K] for the inputs of matrices [N, K] that all read `rows` [M, K]; None where they gain too little.

    Powers of the inputs' mean sizes are tried; the one with the least squared error of the outputs wins.
    """
    loud = rows.abs().mean(0).clamp_min(1e-8)
    best, least = None, torch.inf
    for power in POWERS:
        scales = loud**power
        scales = scales / (scales.max() * scales.min()).sqrt()
        error = 0.0
        for weight in weights:
            wide = weight.float() * scales
            steps = group_scales(wide, group, torch.float32)
            off = nearest_codes(wide, steps).float() * steps.repeat_interleave(group, 1) - wide
            error += float(((rows / scales) @ off.t()).square().sum())
        if not power:
            least = error * GAIN
        elif error < least:
            best, least = scales, error
    return best
