"""The guard: what is not finite never reaches the weights, a spike of the loss is gone back from, both are named."""

from __future__ import annotations

import math
import zlib
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..base.distributed import rank, world_size
from ..base.errors import FailureError
from ..base.protocols import Batch
from . import parallel
from .spikes import Spikes

if TYPE_CHECKING:
    from .run import Run

IN_A_ROW = 10
ABOVE = 100  # steps at more than twice the first loss (and one more) that count as divergence
NAMED = 8  # documents named in a sentence; all of them stand in steps.jsonl

NOT_FINITE, SPIKE, GUILTY = "not finite", "spike", "guilty"


class Guard:
    """Looks at every step before the update. A bad step is skipped and told; `IN_A_ROW` of them end the run.

    `parts` is in how many parts each micro-batch is taken (`memory`).
    """

    def __init__(self, spikes: float = 0.0) -> None:
        self.spikes = Spikes(spikes)
        self.in_a_row = 0
        self.skipped = 0
        self.parts = 1
        self.first: float | None = None
        self.above = 0
        self.reason = ""
        """Why the last step was not applied, when it was not."""

    def passes(self, step: int, loss: float, norm: float) -> bool:
        """True when the step after `step` may be applied; else `reason` says why not."""
        self.reason = ""
        if self.spikes.guilty(step + 1):
            self.reason = GUILTY
        elif not (math.isfinite(loss) and math.isfinite(norm)):
            self.reason = NOT_FINITE
            self.in_a_row += 1
        elif self.spikes.limit and self.spikes.sees(step + 1, loss):
            self.reason = SPIKE
        if self.reason:
            self.skipped += 1
            return False
        self.in_a_row = 0
        self.first = loss if self.first is None else self.first
        self.above = self.above + 1 if self.first > 0 and loss > 2 * self.first + 1 else 0
        return True

    def tell(self, run: Run, loss: float, losses: list[Tensor], group: list[Batch]) -> None:
        """Say what was not applied and why. Raises FailureError when too many steps in a row were not finite."""
        if self.reason == NOT_FINITE:
            sentence = self._not_finite(run, losses, group)
            run.log(sentence)
            if self.in_a_row >= IN_A_ROW:
                raise FailureError(
                    f"{sentence}; this is bad step {self.in_a_row} in a row, so training stops: "
                    "lower learning_rate or look at that batch, and run again."
                )
        elif self.reason == GUILTY:
            where = "; ".join(parallel.gather_text(", ".join(_named(run, batch) for batch in group)))
            run.log(f"step {run.step + 1}: skipped because of the spike ({where}); its loss is {loss:.4g} now")
        elif self.reason == SPIKE:
            where = "; ".join(parallel.gather_text(", ".join(_named(run, batch) for batch in group)))
            run.log(f"step {run.step + 1}: {self.spikes.describe(loss)} ({where})")

    def check(self, run: Run) -> None:
        """Raises FailureError when the loss has long been far above where it began, and is one that should fall."""
        if self.above >= ABOVE and getattr(run.objective, "falls", True):
            raise FailureError(
                f"step {run.step}: the loss has been above {2 * (self.first or 0) + 1:.3g}, far over the "
                f"{self.first:.3g} it began with, for {ABOVE} steps, so training diverges: lower learning_rate and "
                "matrix_learning_rate, and run again; earlier checkpoints and models are untouched."
            )

    def _not_finite(self, run: Run, losses: list[Tensor], group: list[Batch]) -> str:
        """One sentence: step, micro-batch, its documents and fingerprint, and the first bad gradient, on every rank."""
        of = f"of {len(group)}" + (f" of rank {rank()}" if world_size() > 1 else "")
        bad = [n for n, loss in enumerate(losses) if not math.isfinite(float(loss))]
        mine = [f"{float(losses[n])} in micro-batch {n + 1} {of} ({_named(run, group[n])})" for n in bad]
        told = [text for text in parallel.gather_text(", ".join(mine)) if text]
        if told:
            what = f"the loss is {', '.join(told)}"
        else:
            names = run.optimizer.own.items()
            first = next((name for name, p in names if p.grad is not None and not _finite(p.grad)), "")
            batches = "; ".join(parallel.gather_text(", ".join(_named(run, batch) for batch in group)))
            what = f"the loss is finite but the gradient{' of ' + first if first else ''} is not ({batches})"
        return f"step {run.step + 1}: {what}; the weights were left as they were"

    def state_dict(self) -> dict[str, Any]:
        """Counts, the losses that spikes are measured by and the steps to skip, for the checkpoint."""
        names = ("in_a_row", "skipped", "parts", "first", "above")
        return {name: getattr(self, name) for name in names} | {"spikes": self.spikes.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        for name in ("in_a_row", "skipped", "parts", "first", "above"):
            setattr(self, name, state[name])
        self.spikes.load_state_dict(state["spikes"])


def _finite(gradient: Tensor) -> bool:
    local = getattr(gradient, "_local_tensor", gradient)  # a shard says nothing of the others: enough for a name
    return bool(local.isfinite().all())


def _named(run: Run, batch: Batch) -> str:
    """'batch 1a2b3c4d, documents a, b, c and 5 more' for a log."""
    names = documents(run, batch)
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"batch {fingerprint(batch)}" + (f", documents {', '.join(names[:NAMED])}{more}" if names else "")


def documents(run: Run, batch: Batch) -> list[str]:
    """Names of the documents in a batch, where the objective can tell."""
    describe = getattr(run.objective, "describe", None)
    return list(describe(batch)) if describe else []


def fingerprint(batch: Batch) -> str:
    """Eight hex digits (CRC-32 of names and bytes) that tell this batch from others, whatever machine it is on."""
    value = 0
    for name in sorted(batch.inputs):
        value = zlib.crc32(name.encode(), value)
        tensor = batch.inputs[name].detach().cpu().contiguous()
        value = zlib.crc32(tensor.view(-1).view(torch.uint8).numpy().data, value)
    return f"{value:08x}"
