"""What each side of the throughput measurement is given, and the clock that it hands back.

Imports nothing but torch and numpy, so that it serves in an environment that does not hold modelworks.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass
class Task:
    """A GPT of so many `layers`, `heads` and `width`, and `steps` of `batch` windows of `block` tokens of `data`."""

    layers: int
    heads: int
    width: int
    block: int
    batch: int
    vocab: int
    data: str
    """A .npy file of token ids, int64 [N]."""
    steps: int
    threads: int
    precision: str
    out: str
    """Where the clock's JSON goes."""
    scratch: str
    """An empty folder of this side's own."""
    launched: float
    """time.monotonic() when this process was started."""
    compile: bool = False
    settings: dict[str, Any] = field(default_factory=dict)
    """Further settings of our own training."""

    @classmethod
    def read(cls) -> Task:
        """The task in the file that the command line names; torch's threads are set."""
        task = cls(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
        torch.set_num_threads(task.threads)
        torch.manual_seed(1)
        return task

    def tokens(self) -> Tensor:
        """All ids, int64 [N]."""
        return torch.from_numpy(np.load(self.data))

    def windows(self, size: int) -> Tensor:
        """int64 [M, size]: pieces of `size` that begin every `block` tokens."""
        return self.tokens().unfold(0, size, self.block).contiguous()


class Clock:
    """When training was begun and when each step of the optimiser was over, in seconds of time.monotonic()."""

    def __init__(self, task: Task) -> None:
        self.task, self.begun = task, 0.0
        self.stamps: list[float] = []

    def begin(self) -> None:
        """Training is called now: what is imported, built and read is there."""
        self.begun = time.monotonic()

    def stamp(self) -> None:
        """A step is over."""
        self.stamps.append(time.monotonic())

    def watch_optimisers(self) -> None:
        """Stamp whenever any optimiser of torch has made a step, whoever drives it."""
        from torch.optim.optimizer import register_optimizer_step_post_hook

        register_optimizer_step_post_hook(lambda *_: self.stamp())

    def finish(self, loss: float, **facts: Any) -> None:
        """Hand everything back; `loss` is the last known training loss, the sign that something was learned."""
        found = {"launched": self.task.launched, "begun": self.begun, "stamps": self.stamps, "loss": loss}
        Path(self.task.out).write_text(json.dumps(found | {"facts": {"torch": torch.__version__} | facts}))
