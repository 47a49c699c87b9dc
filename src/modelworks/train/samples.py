"""What the model says: fixed beginnings of validation texts, continued at each evaluation, so that one can read along.

`train` knows no decoder: a recipe hands in a `base.protocols.Sampler` and the beginnings.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..base.errors import ModelworksError
from ..base.protocols import Sampler

if TYPE_CHECKING:
    from .run import Run

TOKENS = 40
"""Of each continuation: a line or two, a tenth of a second for a small model."""
TEMPERATURE, SEED = 0.8, 1  # the same draws each time: what changes between two samples is the model


class Samples:
    """Continuations for the trackers. `prompts` are pairs of a text and its token ids."""

    def __init__(self, sampler: Sampler, prompts: Sequence[tuple[str, Sequence[int]]], tokens: int = TOKENS) -> None:
        self.sampler, self.prompts, self.tokens = sampler, list(prompts), tokens

    def __call__(self, run: Run) -> None:
        """Sample and record. A sampler that refuses is told once and asked no more: it must not end a training."""
        try:
            said = self.sampler.sample(
                [ids for _, ids in self.prompts], self.tokens, temperature=TEMPERATURE, seed=SEED
            )
        except ModelworksError as error:
            run.log(f"no samples of the model: {error}")
            self.prompts = []
            run.samples = None
            return
        for number, ((prompt, _), sample) in enumerate(zip(self.prompts, said, strict=True), 1):
            for tracker in run.trackers:
                tracker.text(run.step, f"sample_{number}", prompt, sample.text)
