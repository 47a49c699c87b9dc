"""GPTQ: rounding whose errors the inputs still to come make up for (Frantar et al. 2023). K in, N out, G groups."""

from __future__ import annotations

import torch
from torch import Tensor

from ..base.errors import FailureError
from .int4 import HIGHEST, LOWEST

DAMP = 0.01
"""Share of the mean of the gram matrix's diagonal that is added to it, as in the paper."""
COLUMNS = 128
"""Inputs rounded one by one before the rest is told of their errors in one product."""


def compensated_codes(weight: Tensor, scales: Tensor, gram: Tensor) -> Tensor:
    """[N, K], scales [N, G], gram [K, K] = sum of x x' over the calibration's inputs -> int8 codes [N, K].

    Minimises the outputs' squared error on those inputs, greedily. Inputs are taken from the loudest to the faintest;
    the scales are settled before that, so the order leaves no trace in what is stored. Inputs never seen are rounded
    to nearest. Raises FailureError where the gram matrix holds no numbers to calculate with.
    """
    order = gram.diagonal().argsort(descending=True)
    inverse = _inverse_root(gram[order][:, order])
    left = weight.float()[:, order].clone()
    steps = scales.float().repeat_interleave(weight.shape[1] // scales.shape[1], 1)[:, order]
    codes = torch.empty_like(left)
    for start in range(0, left.shape[1], COLUMNS):
        end = min(start + COLUMNS, left.shape[1])
        errors = torch.empty_like(left[:, start:end])
        for column in range(start, end):
            wanted, step = left[:, column], steps[:, column]
            codes[:, column] = (wanted / step).round_().clamp_(LOWEST, HIGHEST)
            off = (wanted - codes[:, column] * step) / inverse[column, column]
            left[:, column:end] -= off[:, None] * inverse[column, column:end]
            errors[:, column - start] = off
        left[:, end:] -= errors @ inverse[start:end, end:]
    out = torch.empty_like(codes)
    out[:, order] = codes
    return out.to(torch.int8)


def _inverse_root(gram: Tensor) -> Tensor:
    """Upper triangular U with U' U = (gram + damping)^-1, float32; worked out in float64."""
    gram = gram.double()
    diagonal = gram.diagonal()
    if not torch.isfinite(gram).all():
        raise FailureError("the calibration's activations are not finite; check the model on this text first.")
    diagonal[diagonal == 0] = diagonal.mean() or 1.0  # gram is a copy of its own: indexing made it
    eye = torch.eye(len(gram), dtype=torch.float64, device=gram.device)
    for more in range(6):
        root, failed = torch.linalg.cholesky_ex(gram + eye * (DAMP * 10**more * diagonal.mean()))
        if not failed:
            return torch.linalg.cholesky(torch.cholesky_inverse(root), upper=True).float()
    raise FailureError("the calibration's activations depend on each other too much for GPTQ; give it more text.")
