"""The guard: a loss or a gradient that is not finite never reaches the weights, and the batch is named."""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor, nn

from ..base.errors import FailureError
from ..base.protocols import Batch

IN_A_ROW = 10


class Guard:
    """Looks at every step before the update. A bad step is skipped and told; `IN_A_ROW` of them end the run."""

    def __init__(self) -> None:
        self.in_a_row = 0
        self.skipped = 0

    def passes(self, loss: float, norm: float) -> bool:
        """True when the step may be applied: the loss and the norm of its whole gradient are finite."""
        if math.isfinite(loss) and math.isfinite(norm):
            self.in_a_row = 0
            return True
        self.in_a_row += 1
        self.skipped += 1
        return False

    def describe(self, step: int, losses: list[Tensor], group: list[Batch], names: dict[str, nn.Parameter]) -> str:
        """One sentence on what was not finite: step, micro-batch, its fingerprint, and the first bad gradient.

        The fingerprint is the start of the SHA-256 of the batch's bytes: equal batches have equal ones.
        """
        guilty = [n for n, loss in enumerate(losses) if not math.isfinite(float(loss))]
        bad = next((name for name, p in names.items() if p.grad is not None and not p.grad.isfinite().all()), "")
        if guilty:
            batches = ", ".join(f"{n + 1} of {len(group)} (batch {fingerprint(group[n])})" for n in guilty)
            what = f"the loss is {float(losses[guilty[0]])} in micro-batch {batches}"
        else:
            batches = ", ".join(fingerprint(batch) for batch in group)
            what = f"the loss is finite but the gradient{' of ' + bad if bad else ''} is not (batch {batches})"
        return f"step {step + 1}: {what}; the weights were left as they were"

    def check(self, sentence: str) -> None:
        """Raises FailureError when too many steps in a row were bad."""
        if self.in_a_row >= IN_A_ROW:
            raise FailureError(
                f"{sentence}; this is bad step {self.in_a_row} in a row, so training stops: "
                "lower learning_rate or look at that batch, and run again."
            )

    def state_dict(self) -> dict[str, int]:
        """Counts, for the checkpoint."""
        return {"in_a_row": self.in_a_row, "skipped": self.skipped}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Take back what `state_dict` gave."""
        self.in_a_row, self.skipped = state["in_a_row"], state["skipped"]


def fingerprint(batch: Batch) -> str:
    """Eight hex digits that tell this batch from others, whatever machine it is on."""
    digest = hashlib.sha256()
    for name in sorted(batch.inputs):
        digest.update(name.encode())
        digest.update(batch.inputs[name].detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:8]
