"""8 bits: one scale for each output, symmetric. Weights alone, or activations too. M rows, K in, N out."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .linear import QuantisedLinear, packed_kernel

HIGHEST = 127


class Int8Linear(QuantisedLinear):
    """Weights in int8 [N, K], activations as they come."""

    BITS = 8

    @classmethod
    def fits(cls, in_features: int, group: int) -> str:
        return "" if group == in_features else f"int8 has one scale for each output, not one for {group} inputs"

    def values(self, start: int, end: int, dtype: torch.dtype) -> Tensor:
        scales = self.scales[start:end]
        wide = torch.promote_types(scales.dtype, dtype)
        return (self.codes[start:end].to(wide) * scales.to(wide)).to(dtype)

    def quick(self, rows: Tensor) -> Tensor | None:
        # The kernel reads past the end of rows that are no multiple of its vectors (torch 2.13).
        if self.in_features % 32 or not packed_kernel(rows, self):
            return None
        return torch._weight_int8pack_mm(rows.contiguous(), self.codes, self.scales.view(-1))


class Int8DynamicLinear(Int8Linear):
    """Weights and activations in int8, one scale for each token, added up exactly in int32 (LLM.int8() without
    its outliers; Dettmers et al. 2022). The quickest of all formats here on a CPU, in float32 as in bfloat16.

    Slopes go back as if the activations had not been rounded.
    """

    def multiply(self, x: Tensor) -> Tensor:
        codes, scales = tokens_to_int8(x.reshape(-1, self.in_features))
        if x.device.type == "cpu":
            sums = torch._int_mm(codes, self.codes.t())
            out = (sums * scales).mul_(self.scales.view(-1).float()).to(x.dtype)
        else:  # the GPU's kernel has conditions on shapes; the same numbers in float
            out = F.linear((codes * scales).to(x.dtype), self.dequantised(x.dtype))
        return out.view(*x.shape[:-1], self.out_features)


def tokens_to_int8(rows: Tensor) -> tuple[Tensor, Tensor]:
    """[M, K] -> int8 codes [M, K] and float32 scales [M, 1] that make each row's largest number 127."""
    rows = rows.float()
    scales = rows.abs().amax(1, keepdim=True).clamp_min_(1e-30).div_(HIGHEST)
    return (rows / scales).round_().to(torch.int8), scales


def round_channels(weight: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """[N, K] -> int8 codes [N, K], scales [N, 1] in `dtype`; each number is at most half a scale away."""
    weight = weight.float()
    scales = weight.abs().amax(1, keepdim=True) / HIGHEST
    scales = torch.where(scales > 0, scales, 1.0).to(dtype)
    return (weight / scales.float()).round_().clamp_(-HIGHEST, HIGHEST).to(torch.int8), scales
