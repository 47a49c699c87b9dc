"""4 bits: whole numbers -8 to 7, one scale for a group of neighbouring inputs, symmetric. K in, N out, G groups."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ._nibbles import numbers, split
from .linear import QuantisedLinear, packed_kernel

LOWEST, HIGHEST = -8, 7
LEVELS = tuple(float(code) for code in range(LOWEST, HIGHEST + 1))
KERNEL_GROUPS = (32, 64, 128, 256)
SHRINKS = [1 - step / 32 for step in range(12)]


class Int4Linear(QuantisedLinear):
    """Two codes a byte, the earlier input in the lower half, each 8 too high: the layout of compressed-tensors.

    The first product with few rows makes a copy in the order that torch's kernel reads on this processor, so that a
    matrix used for generation takes a byte a number.
    """

    BITS = 4
    FEW = 32

    def __init__(self, in_features: int, out_features: int, bias: bool, group: int, dtype: torch.dtype) -> None:
        super().__init__(in_features, out_features, bias, group, dtype)
        self._kernel: tuple[Tensor, Tensor] | None = None

    @classmethod
    def fits(cls, in_features: int, group: int) -> str:
        return fits_groups(in_features, group)

    def fill(self, codes: Tensor, scales: Tensor, bias: Tensor | None) -> None:
        self._kernel = None
        super().fill(codes, scales, bias)

    def values(self, start: int, end: int, dtype: torch.dtype) -> Tensor:
        scales = self.scales[start:end]
        wide = torch.promote_types(scales.dtype, dtype)
        found = numbers(self.codes[start:end], LEVELS, wide, high_first=False)
        return found.unflatten(1, (-1, self.group)).mul_(scales.to(wide)[..., None]).flatten(1).to(dtype)

    def quick(self, rows: Tensor) -> Tensor | None:
        if self.group not in KERNEL_GROUPS or not packed_kernel(rows, self):
            return None
        if self._kernel is None:
            more = (0, 0, 0, -self.out_features % 16)  # the kernel wants outputs in sixteens; a vocabulary rarely is
            low, high = split(F.pad(self.codes, more))
            codes = torch.stack((low, high), 2).flatten(1).int()
            turned = F.pad(self.scales, more).t()
            both = torch.stack((turned, torch.zeros_like(turned)), 2).contiguous()
            self._kernel = torch._convert_weight_to_int4pack_for_cpu(codes, 1), both
        packed, both = self._kernel
        out = torch._weight_int4pack_mm_for_cpu(rows.contiguous(), packed, self.group, both)
        return out[:, : self.out_features]

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        self._kernel = None
        return super()._apply(*args, **kwargs)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._kernel = None
        super()._load_from_state_dict(*args, **kwargs)


def fits_groups(in_features: int, group: int) -> str:
    """'' where rows of so many inputs divide into groups of whole bytes, else why not."""
    if group < 8 or group % 8:
        return f"a group of {group} inputs is no multiple of 8"
    return "" if in_features % group == 0 else f"{in_features} inputs are no multiple of the group of {group}"


def group_scales(weight: Tensor, group: int, dtype: torch.dtype) -> Tensor:
    """[N, K] -> scales [N, G] in `dtype`: the smallest ones that cut no number off."""
    groups = weight.float().unflatten(1, (-1, group))
    scales = torch.maximum(groups.amax(2) / HIGHEST, groups.amin(2) / LOWEST)
    return torch.where(scales > 0, scales, 1.0).to(dtype)


def clipped_scales(weight: Tensor, group: int, dtype: torch.dtype, rows: Tensor) -> Tensor:
    """[N, K], inputs [M, K] -> scales [N, G] in `dtype`: those of `group_scales`, or smaller ones.

    The best of a dozen for the squared error of each group's share of the outputs on those inputs: what is lost by
    cutting a few numbers off can be less than what finer steps gain for the rest (the clipping of AWQ).
    """
    groups = weight.float().unflatten(1, (-1, group)).transpose(0, 1)
    inputs = rows.unflatten(1, (-1, group)).transpose(0, 1)
    gram = inputs.transpose(1, 2) @ inputs
    whole = group_scales(weight, group, torch.float32)
    best, least = whole.to(dtype), torch.full_like(whole, torch.inf)
    for shrink in SHRINKS:
        scales = (whole * shrink).to(dtype)
        step = scales.float().t()[..., None]
        off = (groups / step).round_().clamp_(LOWEST, HIGHEST).mul_(step).sub_(groups)
        cost = ((off @ gram) * off).sum(2).t()
        best, least = torch.where(cost < least, scales, best), torch.minimum(cost, least)
    return best


def nearest_codes(weight: Tensor, scales: Tensor) -> Tensor:
    """[N, K], [N, G] -> int8 codes [N, K]: each number to the nearest step (RTN)."""
    groups = weight.float().unflatten(1, (scales.shape[1], -1))
    return (groups / scales.float()[..., None]).round_().clamp_(LOWEST, HIGHEST).flatten(1).to(torch.int8)


def pack(codes: Tensor) -> Tensor:
    """int8 codes -8 to 7 [N, K] -> uint8 [N, K/2]."""
    up = (codes - LOWEST).to(torch.uint8)
    return up[:, 0::2] | (up[:, 1::2] << 4)


def round_groups(weight: Tensor, group: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """[N, K] -> packed codes uint8 [N, K/2], scales [N, G] in `dtype`; each number at most half a scale away."""
    scales = group_scales(weight, group, dtype)
    return pack(nearest_codes(weight, scales)), scales
