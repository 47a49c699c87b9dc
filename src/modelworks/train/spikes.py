"""Spikes of the loss: seen by a robust rule, gone back from, the guilty batches skipped; the same whenever it is run.

    step      ... 96  97  98  99 [100]        the loss of step 100 is a spike: it is not applied
    back to   the newest checkpoint at or before step 98, and the same steps again, bit for bit
    then      ... 96  97  98  --  --  101     99 (whose update it shows) and 100 (its own batch) are skipped

The rule: a loss above median + limit * spread of the last 128 applied steps, spread = 1.4826 * (median distance from
the median), at least 2 % of the first loss. Going back and skipping is what PaLM did by hand (Chowdhery et al. 2022,
section 5.1), a running statistic of 128 steps is OLMo's (OLMo-core, SkipStepOptimizer); median and MAD in place of
mean and deviation, since the spike itself must not widen what is normal (Leys et al. 2013).

What is skipped depends on steps and losses only, not on where checkpoints happen to stand or where the run was
killed: whoever runs it again skips the same ones and ends with the same weights.
"""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

from ..base.errors import FailureError
from . import checkpoint

if TYPE_CHECKING:
    from .run import Run

WINDOW = 128
LEAST = 16  # losses before the rule means anything
FLOOR = 0.02  # of the first loss: the least spread, for runs that hardly vary any more
SPANS = (2, 4, 8, 16)  # batches skipped at the first spike, and at each that comes again within WINDOW steps


class Spikes:
    """The losses that say what is normal, and the steps to skip. `limit` is in spreads; 0 looks at nothing."""

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.losses: list[float] = []
        self.first = self.shown = 0.0
        self.skips: list[int] = []
        self.tries = 0
        """Spikes in a row, each within WINDOW steps of the one before."""
        self.last = 0

    def guilty(self, step: int) -> bool:
        """True for a step (counted from 1) that is to be skipped."""
        return step in self.skips

    def sees(self, step: int, loss: float) -> bool:
        """True when this loss is a spike; else it joins what is normal."""
        if loss > self.bound():
            self.shown = loss
            return True
        self.first = self.first or abs(loss)
        self.losses.append(loss)
        del self.losses[:-WINDOW]
        return False

    def bound(self) -> float:
        """The largest loss that is normal now."""
        if len(self.losses) < LEAST:
            return float("inf")
        middle = statistics.median(self.losses)
        spread = 1.4826 * statistics.median(abs(loss - middle) for loss in self.losses)
        return middle + self.limit * max(spread, FLOOR * self.first)

    def describe(self, loss: float) -> str:
        """What is wrong with this loss."""
        return f"the loss is {loss:.4g} where at most {self.bound():.4g} was to be expected"

    def state_dict(self) -> dict[str, Any]:
        """All of it, for the checkpoint."""
        return {name: getattr(self, name) for name in ("losses", "first", "skips", "tries", "last")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.losses, self.skips = list(state["losses"]), list(state["skips"])
        self.first, self.tries, self.last = state["first"], state["tries"], state["last"]


def roll_back(run: Run) -> bool:
    """Go back to before the spike that the step just taken showed, with its batches to be skipped; True when it did.

    Raises FailureError when it came again after every attempt and the loss is no better than at the start.
    """
    spikes, at = run.guard.spikes, run.step
    tries = spikes.tries + 1 if spikes.last and at <= spikes.last + WINDOW else 1
    if tries > len(SPANS):
        _give_up(run, at)
        return False
    begin = max(1, at - SPANS[tries - 1] + 1)
    skips = sorted({*spikes.skips, *range(begin, at + 1)})
    for hook in run.hooks:
        hook.settle(run)
    folder = checkpoint.newest(run, begin - 1)
    if folder is None:
        run.log(f"no checkpoint is left from before step {begin}, so only step {at} is left out")
        return False
    seconds = run.tick()
    checkpoint.load(run, folder)
    checkpoint.forget_later(run)
    run.seconds = seconds
    run.guard.spikes.skips, run.guard.spikes.tries, run.guard.spikes.last = skips, tries, at
    for hook in run.hooks:
        hook.went_back(run)
    run.log(f"back to step {run.step}, and on from there without the steps {begin} to {at}")
    return True


def _give_up(run: Run, at: int) -> None:
    spikes = run.guard.spikes
    if spikes.shown >= spikes.first:
        raise FailureError(
            f"step {at}: the loss spikes again after going back {len(SPANS)} times; lower learning_rate and "
            "matrix_learning_rate, and run again; the checkpoints from before it are untouched."
        )
    spikes.losses, spikes.tries = [], 0
    run.log(f"step {at}: the loss rose again after going back {len(SPANS)} times, so it is taken as the new level")
