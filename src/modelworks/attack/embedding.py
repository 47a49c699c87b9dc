"""Adversarial noise on input embeddings: one step along the gradient (FGM) or several with projection (PGD).

    delta = radius * g / |g|   per token, g = gradient of the loss with respect to that token's embedding

Every token has a ball of its own: the L2 norm of its row of `delta` is at most `radius`. The usual choice, one ball
for the whole sequence (Miyato et al. 2017), shrinks the noise of a token as the text grows and as padding is added;
per token, a setting means the same at every length. `epsilon` counts mean embedding norms (`radius = epsilon *
norm(model)`), so it also means the same for every model. FGM: Goodfellow et al. 2015, Miyato et al. 2017,
"Adversarial training methods for semi-supervised text classification"; PGD: Madry et al. 2018. Shapes: B batch,
T time, D width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from modelworks.base.config import Settings
from modelworks.base.errors import UserError

from ._trial import Trial

VERSION = 1
REACH = 2.5  # PGD: steps together can cross the ball this many times its radius (Madry et al. use 2.5)


class Config(Settings):
    """How strong the noise is and how hard it is searched."""

    epsilon: float = 0.3
    """Largest L2 norm of the noise on one token, in mean embedding norms."""
    steps: int = 1
    """1 is FGM; more is PGD with projection and a random start."""
    seed: int = 0
    """Chooses the random start of PGD."""


def perturb(
    loss: Callable[[Tensor], Tensor],
    shape: Sequence[int],
    radius: float,
    *,
    steps: int = 1,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Noise float32 of `shape` [..., D] that raises `loss(noise)`, every row within L2 norm `radius`.

    `loss` maps noise to a scalar (a sum over independent rows is fine: rows do not share a ball). Parameters get no
    gradients from this. One step starts at zero; more start at a random point of the ball that depends on `seed`.
    Works inside `torch.no_grad`. Raises UserError for a negative radius or no step.
    """
    if radius < 0 or steps < 1 or not math.isfinite(radius):
        raise UserError(
            f"an attack needs a radius of at least 0 and at least one step (got radius {radius}, {steps} steps)."
        )
    with torch.enable_grad():
        delta = torch.zeros(*shape, device=device)
        if steps > 1:
            delta = project(_random(shape, radius, seed).to(device), radius)
        for _ in range(steps):
            delta.requires_grad_(True)
            (gradient,) = torch.autograd.grad(loss(delta), delta)
            length = radius if steps == 1 else radius * REACH / steps
            delta = project(delta.detach() + ascent(gradient, length), radius)
    return delta.detach()


def ascent(gradient: Tensor, length: float | Tensor) -> Tensor:
    """The step of L2 norm `length` in each row along `gradient` [..., D]; zero where that is zero or not finite."""
    gradient = gradient.detach().to(torch.promote_types(gradient.dtype, torch.float32))
    gradient = torch.nan_to_num(gradient, nan=0.0, posinf=0.0, neginf=0.0)
    largest = gradient.abs().amax(-1, keepdim=True)  # first, so that squares of tiny numbers do not vanish
    unit = gradient / largest.clamp_min(torch.finfo(torch.float32).tiny)
    return length * unit / torch.linalg.vector_norm(unit, dim=-1, keepdim=True).clamp_min(1.0)


def project(delta: Tensor, radius: float | Tensor) -> Tensor:
    """The nearest point of the ball: rows longer than `radius` are scaled down to it."""
    norms = torch.linalg.vector_norm(delta, dim=-1, keepdim=True)
    return delta * (radius / norms.clamp_min(1e-30)).clamp_max(1.0)


def token_embedding(model: nn.Module) -> nn.Embedding:
    """The table of token embeddings: the largest one in the model (positions have fewer rows).

    Raises UserError when the model has none.
    """
    tables = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    if not tables:
        raise UserError(f"{type(model).__name__} has no token embeddings, so they cannot be attacked; leave epsilon 0.")
    return max(tables, key=lambda table: table.num_embeddings)


def norm(model: nn.Module) -> float:
    """Mean L2 norm of the model's token embeddings: the unit of `epsilon`."""
    return float(torch.linalg.vector_norm(token_embedding(model).weight.detach().float(), dim=-1).mean())


def example() -> Trial:
    """The contract suite's case: logistic loss of 12 points of width 8 under a linear model."""
    dice = torch.Generator().manual_seed(1)
    points, weights = torch.randn(12, 8, generator=dice), torch.randn(8, generator=dice)
    signs = torch.where(torch.rand(12, generator=dice) < 0.5, 1.0, -1.0)

    def loss(attacked: Tensor) -> Tensor:
        return nn.functional.softplus(-signs * (attacked @ weights)).sum()

    return Trial(
        clean=points,
        attack=lambda budget, seed: (
            points + perturb(lambda delta: loss(points + delta), points.shape, budget, steps=5, seed=seed)
        ),
        distance=lambda attacked: float(torch.linalg.vector_norm(attacked - points, dim=-1).max()),
        loss=lambda attacked: float(loss(attacked)),
        budget=0.5,
    )


def _random(shape: Sequence[int], radius: float, seed: int) -> Tensor:
    """Rows in random directions with lengths up to `radius`, drawn on the CPU so that devices agree."""
    dice = torch.Generator().manual_seed(seed % 2**63)
    direction = torch.randn(*shape, generator=dice)
    length = torch.rand(*shape[:-1], 1, generator=dice) * radius
    return length * direction / torch.linalg.vector_norm(direction, dim=-1, keepdim=True).clamp_min(1e-30)
