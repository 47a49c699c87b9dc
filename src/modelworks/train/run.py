"""A run: everything that training is made of, put together or picked up where it was left."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..base import files, seeds
from ..base.device import DTYPES
from ..base.distributed import barrier, is_main, share, shares
from ..base.energy import Meter
from ..base.errors import UserError
from ..base.log import say
from ..base.protocols import Batch, Objective
from . import blocks, memory, schedule, sharded, tune
from .average import Average
from .guard import Guard
from .optim import Optimizer
from .precision import Lowered
from .settings import TrainSettings
from .sharded import Plan, Shards
from .signals import Interrupt

if TYPE_CHECKING:
    from .hooks import Hook
    from .samples import Samples
    from .trackers import Tracker

Log = Callable[[str], None]


@dataclass
class Run:
    """What `train` works on. `step`, `tokens` and `seconds` count from the run's very start, over all restarts."""

    model: nn.Module
    objective: Objective
    settings: TrainSettings
    folder: Path
    optimizer: Optimizer
    log: Log = say
    average: Average | None = None
    shards: Shards | None = None
    """How the model lies on several ranks, where it does."""
    hooks: list[Hook] = field(default_factory=list)
    trackers: list[Tracker] = field(default_factory=list)
    samples: Samples | None = None
    """What the model is asked to say at each evaluation, where the recipe gave it something to say it with."""
    guard: Guard = field(default_factory=Guard)
    lowered: Lowered = field(init=False)
    meter: Meter = field(init=False)
    interrupt: Interrupt = field(default_factory=Interrupt)
    dtype: torch.dtype = torch.float32
    plan: dict[str, Any] = field(default_factory=dict)
    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    positions: int = 0
    """Places computed by this rank since the process began (padding and masked ones too): the measure of speed."""
    group: list[Batch] = field(default_factory=list)
    """The micro-batches of the step that is taken."""
    stopped: str = ""
    """Why the run ended before its budget, when it did."""
    metrics: dict[str, float] = field(default_factory=dict)
    """The latest evaluation."""
    closing: ExitStack = field(default_factory=ExitStack)
    _since: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.lowered = Lowered(self.model)
        self.meter = Meter(self.device.type)

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return next(self.model.parameters()).device if self.shards is None else self.shards.device

    @property
    def progress(self) -> float:
        """The part of the budget that is spent; where steps and tokens are both given, the one nearer its end."""
        budget = self.settings
        return max(
            self.step / budget.steps if budget.steps else 0.0, self.tokens / budget.tokens if budget.tokens else 0.0
        )

    @property
    def done(self) -> bool:
        """True when no further step is to be taken."""
        return bool(self.stopped) or self.progress >= 1

    @property
    def scale(self) -> float:
        """The learning-rate factor of the step that comes next."""
        s = self.settings
        return schedule.factor(s.schedule, self.step, self.progress, s.warmup_steps, s.decay_fraction)

    def computing(self) -> AbstractContextManager[object]:
        """Around losses and gradients: the model is in `dtype`, its float32 weights wait outside."""
        if self.shards is not None:  # gathered in that format already
            return contextlib.nullcontext()
        return self.lowered(self.dtype)

    def whole(self) -> nn.Module:
        """The model as an ordinary one. Every rank must call it; of a spread model only the first gets the numbers."""
        return self.model if self.shards is None else self.shards.whole()

    def take(self, batch: Batch) -> Batch:
        """A batch on the model's device, counted."""
        self.positions += max(
            (t.shape[0] * (t.shape[1] if t.ndim > 1 else 1) for t in batch.inputs.values()), default=0
        )
        return batch.to(self.device)

    def tick(self) -> float:
        """Seconds that the run has taken so far."""
        now = time.monotonic()
        self.seconds += now - self._since
        self._since = now
        return self.seconds

    def record(self, values: dict[str, float]) -> None:
        """Write values of this step to metrics.jsonl and the trackers."""
        for tracker in self.trackers:
            tracker.write(self.step, values)

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """Around the loop: signals are caught, hooks begin and end, the folder's lock is let go at last."""
        self._since = time.monotonic()
        with self.closing, self.interrupt.watching():
            for tracker in self.trackers:
                self.closing.callback(tracker.close)
            self.model.train()
            for hook in self.hooks:
                hook.begin(self)
            if self.interrupt.number:  # it came while an evaluation was made up for: all else is on disk
                raise SystemExit(128 + self.interrupt.number)
            with memory.told(self):
                yield


def start(
    model: nn.Module,
    objective: Objective,
    settings: TrainSettings,
    folder: Path,
    log: Log = say,
    plan: bool = True,
    spread: Plan | None = None,
) -> Run:
    """Put a run together; when `folder` holds a checkpoint of it, go on from the newest good one.

    The folder is locked until `train` returns. `plan=False` skips the trial steps that estimate time and memory
    (dtype 'auto' then means what it meant here before, else float32). `spread` says how the model may be taken apart
    where `settings.parallel` asks for it.

    Raises UserError when the folder holds another run, is in use, or the objective refuses to be split.
    """
    from . import checkpoint, deterministic, hooks, trackers
    from .plan import make

    sharded.arrange(settings.parallel)
    if not objective.splittable and (settings.accumulate > 1 or shares() > 1):
        raise UserError("this objective compares the rows of a batch, so it cannot be split: set accumulate to 1.")
    if not any(p.requires_grad for p in model.parameters()):
        raise UserError("the model has no trainable parameters; unfreeze some.")
    sharded.agree(model, objective, settings)
    if settings.recompute:
        blocks.recomputed(model)
    shards = sharded.shard(model, settings, spread or Plan(), Path(folder) / "plan.json")
    optimizer = Optimizer(model, settings)
    run = Run(model, objective, settings, Path(folder), optimizer, log if is_main() else _silent, shards=shards)
    run.guard = Guard(settings.guard.spikes)
    if settings.guard.deterministic:
        run.settings = deterministic.settled(settings)
        run.closing.enter_context(deterministic.required(run))
    run.average = Average(model, settings.ema) if settings.ema else None
    if is_main():
        run.closing.enter_context(files.lock(run.folder / checkpoint.FOLDER))
        files.sweep(run.folder / checkpoint.FOLDER)
    barrier()
    run.trackers = trackers.make(run)
    run.hooks = hooks.make(run)
    if not checkpoint.restore(run):
        for tracker in run.trackers:  # what a run logged that died before its first checkpoint comes again
            tracker.load_state_dict({"bytes": 0, "step": 0})
        run.dtype = DTYPES[make(run, measure=plan and shards is None)["dtype"]]
        run.guard.parts = run.plan.get("parts", 1)
        seeds.seed_everything(settings.seed if share() == 0 else seeds.derive(settings.seed, "rank", share()))
    if shards is not None:
        run.dtype = shards.dtype
    elif "way" in run.plan:
        tune.apply(run, tune.Way(**run.plan["way"] | {"parts": run.guard.parts}))
    return run


def _silent(text: str) -> None:
    """Ranks other than the first do not speak."""
