"""Optimisers that were held against Muon with AdamW (`sweep.py`, key `rival`) and are not part of the product.

Each is a `torch.optim.Optimizer` over float parameters, so that `sweep.py` can put it where AdamW or Muon stand:

    lion            Chen et al. 2023, arXiv 2302.06675, algorithm 2
    soap            Vyas et al. 2024, arXiv 2409.11321: Adam in the eigenbasis of Shampoo's two preconditioners
    schedule_free   Defazio et al. 2024, arXiv 2405.15682, algorithm 1 with AdamW; the weights hold y, `average()` x
    adafactor       Shazeer & Stern 2018: torch's own (`torch.optim.Adafactor`)
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class Lion(Optimizer):
    """w <- w - rate (sign(b1 m + (1 - b1) g) + decay w);   m <- b2 m + (1 - b2) g."""

    def __init__(
        self, params: Iterable[Any], lr: float, betas: tuple[float, float] = (0.9, 0.99), weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            first, second = group["betas"]
            for w in group["params"]:
                if w.grad is None:
                    continue
                m = self.state[w].setdefault("exp_avg", torch.zeros_like(w))
                direction = m.lerp(w.grad, 1 - first).sign_()
                w.mul_(1 - group["lr"] * group["weight_decay"]).add_(direction, alpha=-group["lr"])
                m.lerp_(w.grad, 1 - second)


class Soap(Optimizer):
    """Adam on Q' g R, where Q and R are the eigenvectors of averages of g g' and g' g; matrices only.

    The basis follows by one QR step of the power iteration every `every` updates; the first gradient only begins the
    averages, as in the authors' own code.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        betas: tuple[float, float] = (0.95, 0.95),
        shampoo: float = 0.95,
        every: int = 10,
        weight_decay: float = 0.0,
        eps: float = 1e-8,
    ) -> None:
        rest = {"shampoo": shampoo, "every": every, "weight_decay": weight_decay, "eps": eps}
        super().__init__(params, {"lr": lr, "betas": betas, **rest})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for w in group["params"]:
                if w.grad is not None:
                    self._update(w, w.grad, self.state[w], group)

    def _update(self, w: Tensor, g: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        first, second = group["betas"]
        if not state:
            state |= {"step": 0, "m": torch.zeros_like(w), "v": torch.zeros_like(w)}
            state["left"], state["right"] = (1 - group["shampoo"]) * g @ g.T, (1 - group["shampoo"]) * g.T @ g
            state["q"], state["r"] = (torch.linalg.eigh(state[side])[1].flip(1) for side in ("left", "right"))
            return
        state["step"] += 1
        q, r = state["q"], state["r"]
        turned = q.T @ g @ r
        state["m"].lerp_(g, 1 - first)
        state["v"].lerp_(turned * turned, 1 - second)
        mean = q.T @ state["m"] @ r / (1 - first ** state["step"])
        spread = (state["v"] / (1 - second ** state["step"])).sqrt() + group["eps"]
        w.mul_(1 - group["lr"] * group["weight_decay"]).sub_(group["lr"] * q @ (mean / spread) @ r.T)
        state["left"].lerp_(g @ g.T, 1 - group["shampoo"])
        state["right"].lerp_(g.T @ g, 1 - group["shampoo"])
        if state["step"] % group["every"] == 0:
            state["q"] = torch.linalg.qr(state["left"] @ q)[0]
            state["r"] = torch.linalg.qr(state["right"] @ r)[0]


class ScheduleFree(Optimizer):
    """y = (1 - b1) z + b1 x;   z <- z - rate (g(y) / sqrt(v) + decay y);   x <- (1 - c) x + c z, c = rate^2 / sum of them.

    The parameters hold y while training and x after `average()`, which ends the run.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 0.0,
        eps: float = 1e-8,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay, "eps": eps})
        self.steps, self.squares = 0, 0.0

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        self.steps += 1
        largest = max(group["lr"] for group in self.param_groups)
        self.squares += largest**2
        share = largest**2 / self.squares if self.squares else 1.0
        for group in self.param_groups:
            first, second = group["betas"]
            for y in group["params"]:
                if y.grad is None:
                    continue
                state = self.state[y]
                if not state:
                    state |= {"z": y.clone(), "x": y.clone(), "v": torch.zeros_like(y)}
                state["v"].lerp_(y.grad * y.grad, 1 - second)
                spread = (state["v"] / (1 - second**self.steps)).sqrt() + group["eps"]
                state["z"].sub_(group["lr"] * (y.grad / spread + group["weight_decay"] * y))
                state["x"].lerp_(state["z"], share)
                y.copy_(state["z"].lerp(state["x"], first))

    @torch.no_grad()
    def average(self) -> None:
        """Put x into the parameters."""
        for y, state in self.state.items():
            y.copy_(state["x"])


RIVALS = {"lion": Lion, "soap": Soap, "schedule_free": ScheduleFree, "adafactor": torch.optim.Adafactor}
