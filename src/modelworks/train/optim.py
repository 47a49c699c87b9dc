"""The optimisers: fused AdamW for vectors and tables, Muon for the matrices of the stack.

Who gets what is decided by type and name alone, so that this file knows no model: the weight of an
`nn.Linear` is a matrix, unless `head` or `stem` is a part of its name, and a weight [N, R, C] that is no
convolution's is N of them (experts); an `nn.Embedding` is a table; all else (norms, biases, heads, odd shapes) is
AdamW's. A table and everything with fewer than two axes is exempt from weight decay.

Beside Muon, rates are such that the best ones are the same for every width (`bench/train/transfer.py`): an orthogonal
update of R x C changes what a matrix puts out by as much whatever its size, a table's row is looked up alone, and a
head adds up C numbers, so it learns at `HEAD_WIDTH` / C times AdamW's rate (Yang et al. 2022, arXiv 2203.03466).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from ..base.device import has_fast_bfloat16
from . import sharded
from .adamw import AdamW
from .settings import TrainSettings

BETAS = (0.9, 0.95)
EPSILON = 1e-8
MOMENTUM = 0.95
HEAD_WIDTH = 128  # the width at which a head learns at AdamW's own rate
QUINTIC = (3.4445, -4.7750, 2.0315)

Alike = tuple[tuple[int, ...], tuple[int, ...]]
"""The shape of a matrix, and of what this rank has of it."""


def is_matrix(name: str, module: nn.Module, parameter: nn.Parameter) -> bool:
    """True for a weight that Muon should train (see the top of this file)."""
    parts = name.replace("_", ".").split(".")
    stack = parameter.ndim == 3 and parts[-1] == "weight" and not isinstance(module, nn.modules.conv._ConvNd)
    matrix = isinstance(module, nn.Linear) and parameter.ndim == 2
    return (matrix or stack) and "head" not in parts and "stem" not in parts


def head_rate(name: str, module: nn.Module, parameter: nn.Parameter) -> float:
    """How many times AdamW's rate a parameter learns at beside Muon (see the top of this file)."""
    is_head = isinstance(module, nn.Linear) and parameter.ndim == 2 and "head" in name.replace("_", ".").split(".")
    return HEAD_WIDTH / parameter.shape[1] if is_head else 1.0


def named(model: nn.Module) -> Iterator[tuple[str, nn.Module, nn.Parameter]]:
    """Every trainable parameter once (tied ones under their first name) with the module that owns it."""
    seen: set[int] = set()
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad and id(parameter) not in seen:
                seen.add(id(parameter))
                yield (f"{prefix}.{name}" if prefix else name), module, parameter


def orthogonal(update: Tensor, steps: int = 5) -> Tensor:
    """The nearest (semi-)orthogonal matrices to `update` [..., R, C], about: singular values land in 0.7 to 1.2.

    Five Newton-Schulz steps of a quintic (Jordan et al. 2024, kellerjordan.github.io/posts/muon), all at once;
    bfloat16 where the processor has it, which the iteration tolerates, else the dtype that came in.
    """
    a, b, c = QUINTIC
    fast = update.dtype == torch.float32 and has_fast_bfloat16(update.device.type)
    x = (update.to(torch.bfloat16) if fast else update).flatten(0, -3)
    tall = x.size(1) > x.size(2)
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = torch.bmm(x, x.mT)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(update.dtype).view_as(update)


class Muon:
    """Nesterov momentum whose direction is made orthogonal before it is applied; equal shapes go in one batch.

    m <- lerp(m, g, 1 - b);   W <- (1 - rate * decay) W - rate * sqrt(max(1, R / C)) * orth(lerp(g, m, b))
    with b 0.95, or what `inertia` says.
    """

    def __init__(self, parameters: dict[str, nn.Parameter], rate: float, decay: float) -> None:
        self.rate, self.decay, self.scale, self.inertia = rate, decay, 1.0, MOMENTUM
        self.groups: dict[Alike, dict[str, nn.Parameter]] = {}
        for name, parameter in parameters.items():
            whole = getattr(parameter, "whole", parameter)
            self.groups.setdefault((tuple(whole.shape), tuple(parameter.shape)), {})[name] = parameter
        self.momentum: dict[Alike, Tensor] = {}

    @torch.no_grad()
    def step(self) -> None:
        """One update with the gradients that are there; a parameter without one counts as having zeros."""
        rate = self.rate * self.scale
        for alike, group in self.groups.items():
            shape, weights = alike[0], list[Tensor](group.values())
            gradient = torch.stack([torch.zeros_like(w) if w.grad is None else w.grad for w in weights])
            momentum = self._momentum(alike)
            momentum.lerp_(gradient, 1 - self.inertia)
            update = sharded.on_whole(orthogonal, gradient.lerp_(momentum, self.inertia), weights)
            if self.decay:
                torch._foreach_mul_(weights, 1 - rate * self.decay)
            torch._foreach_add_(weights, list(update.unbind()), alpha=-rate * max(1.0, shape[-2] / shape[-1]) ** 0.5)

    def _momentum(self, alike: Alike) -> Tensor:
        if alike not in self.momentum:
            group = self.groups[alike]
            first = next(iter(group.values()))
            self.momentum[alike] = torch.zeros(len(group), *alike[1], dtype=first.dtype, device=first.device)
        return self.momentum[alike]

    def tensors(self) -> dict[str, Tensor]:
        """The state by parameter name."""
        return {
            f"{name}.momentum": row
            for alike, stack in self.momentum.items()
            for name, row in zip(self.groups[alike], stack.unbind(), strict=True)
        }

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take back what `tensors` gave."""
        self.momentum.clear()
        for alike, group in self.groups.items():
            if f"{next(iter(group))}.momentum" in tensors:
                stack = self._momentum(alike)
                for row, name in zip(stack.unbind(), group, strict=True):
                    row.copy_(tensors[f"{name}.momentum"])


class Optimizer:
    """All parameters of a model, each with the optimiser it should have, driven as one."""

    def __init__(self, model: nn.Module, settings: TrainSettings) -> None:
        self.names: dict[str, nn.Parameter] = {}
        """The model's own, by name."""
        self.own: dict[str, nn.Parameter] = {}
        """What is stepped: the same, or this rank's shards of them."""
        matrices: dict[str, nn.Parameter] = {}
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for name, module, parameter in named(model):
            own = sharded.stand_in(parameter)
            self.names[name], self.own[name] = parameter, own
            if settings.optimizer == "muon" and is_matrix(name, module, parameter):
                matrices[name] = own
            else:
                exempt = parameter.ndim < 2 or isinstance(module, nn.Embedding)
                suits = head_rate(name, module, parameter) if settings.optimizer == "muon" else 1.0
                # a parameter may say how many times the learning rate it learns at (LoRA+)
                group = (0.0 if exempt else settings.weight_decay, getattr(parameter, "rate", suits))
                groups.setdefault(group, []).append(own)
        self.parameters = list(self.own.values())
        self._with_gradients = {*self.parameters, *self.names.values()}
        self.muon = Muon(matrices, settings.matrix_learning_rate, settings.weight_decay) if matrices else None
        self._make = functools.partial(
            AdamW,
            [{"params": group, "weight_decay": decay, "rate": rate} for (decay, rate), group in groups.items()],
            lr=settings.learning_rate,
            betas=BETAS,
            eps=EPSILON,
        )
        self.peak = settings.learning_rate
        self.adamw = self._make() if groups else None
        self.watch: Callable[[], None] | None = None
        """Called before the next steps, while the gradients are there."""

    def step(self, scale: float, inertia: float = MOMENTUM) -> None:
        """One update at `scale` times the peak learning rates, Muon's with this momentum."""
        if self.watch:
            self.watch()
        if self.muon:
            self.muon.scale, self.muon.inertia = scale, inertia
            self.muon.step()
        if self.adamw:
            for group in self.adamw.param_groups:
                group["lr"] = self.peak * scale * group["rate"]
            self.adamw.step()

    def clear(self) -> None:
        """Drop the gradients."""
        for parameter in self._with_gradients:
            parameter.grad = None

    def forget(self) -> None:
        """Back to the state before the first step (after the plan's trial steps)."""
        self.clear()
        if self.muon:
            self.muon.momentum.clear()
        if self.adamw:
            self.adamw.state.clear()

    def tensors(self) -> dict[str, Tensor]:
        """The whole state as tensors named `<parameter>.<what>`."""
        out = self.muon.tensors() if self.muon else {}
        if self.adamw:
            for name, parameter in self.own.items():
                state = self.adamw.state.get(parameter, {})
                out.update({f"{name}.{what}": value for what, value in state.items()})
        return {key: sharded.like(self.names[key.rpartition(".")[0]], value) for key, value in out.items()}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take back what `tensors` gave; every tensor is copied into memory that torch itself aligned."""
        tensors = {name: sharded.local(tensor) for name, tensor in tensors.items()}
        if self.muon:
            self.muon.load(tensors)
        if not self.adamw:
            return
        self.adamw.state.clear()
        for group in self.adamw.param_groups:
            for parameter in group["params"]:
                name = self._name(parameter)
                if f"{name}.step" in tensors:
                    self.adamw.state[parameter] = {
                        what: tensors[f"{name}.{what}"].to(parameter.device, copy=True)
                        for what in ("step", "exp_avg", "exp_avg_sq")
                    }

    def _name(self, parameter: nn.Parameter) -> str:
        return next(name for name, known in self.own.items() if known is parameter)
