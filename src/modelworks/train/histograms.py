"""Pictures of the weights: at evaluations, how weights and gradients spread and how far each step moves them.

The step of an evaluation is watched: its gradients and weights are looked at just before the optimiser takes them,
and the weights again just after. Of each parameter at most `SEEN` numbers, evenly spaced, are looked at: for them
a histogram differs from that of all by less than a line's width, and the cost is the same for any size of model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .hooks import Hook

if TYPE_CHECKING:
    from .run import Run

SEEN = 8192
BINS = 48


@dataclass(frozen=True)
class Histogram:
    """How many of `seen` values lie between two `edges`; sums over those values."""

    counts: np.ndarray[Any, Any]
    edges: np.ndarray[Any, Any]
    seen: int
    total: float
    squares: float


def of(values: np.ndarray[Any, Any]) -> Histogram:
    """The histogram of finite values in float32; others are left out."""
    values = values[np.isfinite(values)]
    counts, edges = np.histogram(values, BINS) if len(values) else (np.zeros(1, np.int64), np.array([0.0, 1.0]))
    return Histogram(counts, edges, len(values), float(values.sum()), float(np.square(values).sum()))


def some(tensor: Tensor) -> Tensor:
    """At most `SEEN` numbers of a tensor, evenly spaced; of a sharded one those of this rank."""
    local = getattr(tensor, "to_local", None)
    flat = (local() if local else tensor).detach().flatten()
    return flat[:: max(1, -(-flat.numel() // SEEN))]


class Histograms(Hook):
    """Weights, gradients and the ratio of update to weight (norms) of each parameter, at evaluations."""

    def __init__(self, every: int) -> None:
        self.every = every
        self.parameters: dict[str, torch.nn.Parameter] = {}
        self.gradients: dict[str, Tensor] = {}
        self.weights: dict[str, Tensor] = {}

    def begin(self, run: Run) -> None:
        """The first step may be one to look at."""
        self._watch(run)

    def __call__(self, run: Run, logs: dict[str, float]) -> None:
        """After a watched step: record it. Before one: watch it."""
        if self.weights:
            self._record(run)
            self.gradients, self.weights = {}, {}
        self._watch(run)

    def _watch(self, run: Run) -> None:
        coming = run.step + 1
        due = coming % self.every == 0 or (run.settings.steps and coming == run.settings.steps)
        self.parameters = getattr(run.optimizer, "own", run.optimizer.names)
        run.optimizer.watch = self._look if due else None

    def _look(self) -> None:
        """Called by the optimiser before it steps."""
        self.weights = {name: some(p).clone() for name, p in self.parameters.items()}
        self.gradients = {name: some(p.grad).clone() for name, p in self.parameters.items() if p.grad is not None}

    def _record(self, run: Run) -> None:
        moved: dict[str, float] = {}
        pictures: dict[str, Histogram] = {}
        for name, before in self.weights.items():
            after, size = some(self.parameters[name]), float(before.float().norm())
            if size > 0:
                moved[f"update_ratio/{name}"] = float((after.float() - before.float()).norm()) / size
            pictures[f"weights/{name}"] = of(after.float().cpu().numpy())
            if name in self.gradients:
                pictures[f"gradients/{name}"] = of(self.gradients[name].float().cpu().numpy())
        for tracker in run.trackers:
            if tracker.draws:
                tracker.write(run.step, moved)
                tracker.histograms(run.step, pictures)
