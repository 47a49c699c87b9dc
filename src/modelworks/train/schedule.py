"""The course of the learning rate: a factor in [0, 1] as a closed form of the step and of how far the run is."""

from __future__ import annotations

import math

SETTLED = 600  # steps in which Muon's momentum reaches its value
FLOOR = 0.1  # where the cosine ends, as in most published runs (GPT-3, Llama); linear and wsd go down to zero


def factor(kind: str, step: int, progress: float, warmup_steps: int, decay_fraction: float) -> float:
    """What to multiply the peak learning rate by in the step after `step` finished ones.

    `progress` in [0, 1) is the part of the budget already spent: of the steps or of the tokens, so the same
    formula serves both. Warm-up is linear: (step + 1) / warmup_steps, and scales whatever the kind gives.
    wsd (warm-up, stable, decay): 1 until the last `decay_fraction` of the budget, then linearly to 0
    (Hu et al. 2024, arXiv 2404.06395; linear decay: Haegele et al. 2024, arXiv 2405.18392).
    """
    rise = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
    left = min(1.0, max(0.0, 1.0 - progress))
    if kind == "wsd":
        return rise * min(1.0, left / decay_fraction)
    if kind == "linear":
        return rise * left
    if kind == "cosine":
        return rise * (FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * (1 - left))))
    return rise


def inertia(step: int) -> float:
    """Muon's momentum in the step after `step` finished ones: from 0.85 to 0.95 in a line, over `SETTLED` steps.

    The first gradients are soon out of date; after 140 steps 0.85 was 0.03 nats ahead of 0.95 (docs/log.md).
    """
    return 0.85 + 0.1 * min(1.0, step / SETTLED)
