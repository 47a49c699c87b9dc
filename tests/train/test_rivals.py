"""The optimisers of bench/train/rivals.py against their published rules, written out in NumPy float64."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench" / "train"))
import rivals

STEPS, RATE, DECAY = 25, 0.03, 0.1


def lion(w: np.ndarray, gradients: list[np.ndarray]) -> np.ndarray:
    m = np.zeros_like(w)
    for g in gradients:
        c = 0.9 * m + 0.1 * g
        w = w - RATE * (np.sign(c) + DECAY * w)
        m = 0.99 * m + 0.01 * g
    return w


def schedule_free(w: np.ndarray, gradients: list[np.ndarray]) -> np.ndarray:
    z, x, v = w.copy(), w.copy(), np.zeros_like(w)
    for t, g in enumerate(gradients, start=1):
        y = 0.1 * z + 0.9 * x
        v = 0.95 * v + 0.05 * g * g
        z = z - RATE * (g / (np.sqrt(v / (1 - 0.95**t)) + 1e-8) + DECAY * y)
        x = (1 - 1 / t) * x + z / t
    return x


def soap(w: np.ndarray, gradients: list[np.ndarray], every: int = 4) -> np.ndarray:
    """Of square gradients: in the null space of others the basis, and so the result, is anyone's choice."""
    g = gradients[0]
    left, right = 0.05 * g @ g.T, 0.05 * g.T @ g
    q, r = np.linalg.eigh(left)[1][:, ::-1], np.linalg.eigh(right)[1][:, ::-1]
    m, v = np.zeros_like(w), np.zeros_like(w)
    for t, g in enumerate(gradients[1:], start=1):
        inner = q.T @ g @ r
        m, v = 0.95 * m + 0.05 * g, 0.95 * v + 0.05 * inner**2
        step = (q.T @ m @ r) / (1 - 0.95**t) / (np.sqrt(v / (1 - 0.95**t)) + 1e-8)
        w = w * (1 - RATE * DECAY) - RATE * q @ step @ r.T
        left, right = 0.95 * left + 0.05 * g @ g.T, 0.95 * right + 0.05 * g.T @ g
        if t % every == 0:
            q, r = np.linalg.qr(left @ q)[0], np.linalg.qr(right @ r)[0]
    return w


@pytest.mark.parametrize(
    ("name", "rule", "options"),
    [("lion", lion, {}), ("schedule_free", schedule_free, {}), ("soap", soap, {"every": 4})],
)
def test_rival_is_its_published_rule(name: str, rule: object, options: dict[str, int]) -> None:
    generator = np.random.default_rng(5)
    start = generator.normal(size=(7, 7))
    gradients = [generator.normal(size=(7, 7)) + 0.3 for _ in range(STEPS)]
    weight = nn.Parameter(torch.from_numpy(start.copy()))
    optimizer = rivals.RIVALS[name]([weight], lr=RATE, weight_decay=DECAY, **options)
    for gradient in gradients:
        weight.grad = torch.from_numpy(gradient)
        optimizer.step()
    if name == "schedule_free":
        optimizer.average()
    np.testing.assert_allclose(weight.detach().numpy(), rule(start, gradients), rtol=1e-9, atol=1e-10)  # type: ignore[operator]
