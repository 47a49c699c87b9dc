"""NF4: 16 levels at quantiles of the normal distribution, a scale for a group of inputs (QLoRA, Dettmers et al. 2023).

The float matrix is made on the fly for every product: small in memory and good to learn adapters around, not quick.
K in, N out, G groups.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ._nibbles import numbers
from .int4 import fits_groups
from .linear import QuantisedLinear

LEVELS = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
"""Appendix E of the paper."""


class NF4Linear(QuantisedLinear):
    """Two codes a byte, the earlier input in the upper half; a scale is its group's largest size (bitsandbytes)."""

    BITS = 4

    @classmethod
    def fits(cls, in_features: int, group: int) -> str:
        return fits_groups(in_features, group)

    def values(self, start: int, end: int, dtype: torch.dtype) -> Tensor:
        scales = self.scales[start:end]
        wide = torch.promote_types(torch.promote_types(scales.dtype, dtype), torch.float32)
        found = numbers(self.codes[start:end], LEVELS, wide, high_first=True)
        return found.unflatten(1, (-1, self.group)).mul_(scales.to(wide)[..., None]).flatten(1).to(dtype)


def round_normal(weight: Tensor, group: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """[N, K] -> packed codes uint8 [N, K/2], scales [N, G] in `dtype`: each number to the nearest level."""
    groups = weight.float().unflatten(1, (-1, group))
    scales = groups.abs().amax(2)
    scales = torch.where(scales > 0, scales, 1.0).to(dtype)
    levels = torch.tensor(LEVELS, device=weight.device)
    codes = torch.bucketize(groups / scales.float()[..., None], (levels[1:] + levels[:-1]) / 2)
    codes = codes.flatten(1).to(torch.uint8)
    return (codes[:, 0::2] << 4) | codes[:, 1::2], scales
