"""A past step again, bit for bit: from the newest checkpoint before it (else from the start) on, and looked at closely.

The steps between are taken as they were then: in as many parts, without the batches that were skipped, with as many
threads (steps.jsonl knows). Nothing is written into the run's own folder.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..base.errors import UserError
from ..base.protocols import Batch, Objective
from . import checkpoint, guard, steps
from .hooks import Hook
from .loop import train
from .run import Log, Run, start
from .settings import TrainSettings

IGNORED = -100


@dataclass
class Token:
    """One prediction of the step: where it stands, what was to be predicted, and its loss in nats."""

    loss: float
    micro_batch: int
    row: int
    position: int
    label: int
    before: list[int]
    """The tokens up to it in its document, at most 16."""
    document: str = ""


@dataclass
class Replayed:
    """What a step was, now and then."""

    step: int
    started_from: int
    """The step of the checkpoint it was reached from (0: the very beginning)."""
    loss: float
    norm: float
    batches: list[str]
    documents: list[list[str]]
    """Of each micro-batch."""
    skipped: str = ""
    tokens: list[Token] = field(default_factory=list)
    """The worst first; none where the objective has no losses of tokens."""
    recorded: dict[str, Any] | None = None
    """The line of steps.jsonl."""
    differs: int | None = None
    """The first step on the way whose loss or gradient norm is not what was recorded."""
    then: dict[str, Any] = field(default_factory=dict)
    now: dict[str, Any] = field(default_factory=dict)

    @property
    def same(self) -> bool | None:
        """True when loss and gradient norm are, bit for bit, what was recorded; None when nothing was."""
        if self.recorded is None:
            return None
        return self.recorded["loss"] == self.loss.hex() and self.recorded["norm"] == self.norm.hex()


class _Reached(Exception):
    """The step is done."""


class _Look(Hook):
    """Takes the steps as they were recorded, notes where they differ, and listens to the model in the last one."""

    def __init__(self, step: int, records: dict[int, dict[str, Any]], threads: int) -> None:
        self.step, self.records, self.threads = step, records, threads
        self.differs: int | None = None
        self.calls: list[tuple[Tensor, Tensor, Tensor]] = []  # tokens, labels, losses of each call of the model
        self.logs: dict[str, float] = {}

    def begin(self, run: Run) -> None:
        if self.threads and run.device.type == "cpu":
            torch.set_num_threads(self.threads)
        run.guard.spikes.limit = 0.0  # what it found is known
        run.guard.spikes.skips = [n for n, r in self.records.items() if r.get("skipped") in (guard.GUILTY, guard.SPIKE)]
        self._prepare(run)

    def __call__(self, run: Run, logs: dict[str, float]) -> None:
        record = self.records.get(run.step)
        if record and self.differs is None:
            same = (record["loss"], record["norm"]) == (logs["loss"].hex(), logs["gradient_norm"].hex())
            self.differs = None if same else run.step
        if run.step == self.step:
            self.logs = logs
            raise _Reached
        self._prepare(run)

    def _prepare(self, run: Run) -> None:
        record = self.records.get(run.step + 1)
        if record:
            run.guard.parts = record.get("parts", 1)
        if run.step + 1 == self.step:
            run.model.register_forward_hook(self._listen, with_kwargs=True)

    def _listen(self, model: nn.Module, given: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        losses, labels = getattr(output, "losses", None), named.get("labels")
        if losses is not None and labels is not None and losses.shape == labels.shape and given:
            self.calls.append((given[0].detach().cpu(), labels.detach().cpu(), losses.detach().float().cpu()))


def replay(
    build: Callable[[], tuple[nn.Module, Objective]],
    settings: TrainSettings,
    folder: Path,
    step: int,
    log: Log,
    worst: int = 20,
) -> Replayed:
    """Take step `step` (counted from 1) of the run whose plan, records and checkpoints are in `folder` again.

    `build` makes the model and the objective that the run began with. Raises UserError when the run has no such step.
    """
    records, then = steps.read(folder / steps.FILE)
    last = max(records, default=settings.steps or step)
    if not 1 <= step <= last:
        raise UserError(f"{folder}: has no step {step}; name one from 1 to {last}.")
    with tempfile.TemporaryDirectory() as kept:
        work = Path(kept)
        if (folder / "plan.json").is_file():
            shutil.copy(folder / "plan.json", work)
        (work / checkpoint.FOLDER).mkdir()
        for path in checkpoint.found(folder):
            if checkpoint.step_of(path) < step:
                (work / checkpoint.FOLDER / path.name).symlink_to(path.resolve(), target_is_directory=True)
        model, objective = build()
        run = start(model, objective, settings.model_copy(update={"track": []}), work, log=log, plan=False)
        began = run.step
        log(f"step {step} again, from {f'the checkpoint of step {began}' if began else 'the beginning'}")
        look = _Look(step, records, int(then.get("threads", 0)))
        for tracker in run.trackers:
            tracker.close()
        run.hooks, run.trackers = [look], []
        try:
            train(run)
        except _Reached:
            pass
        else:
            raise UserError(f"{folder}: the run ended with step {run.step}; name one up to that.")
        return Replayed(
            step,
            began,
            look.logs["loss"],
            look.logs["gradient_norm"],
            [guard.fingerprint(batch) for batch in run.group],
            [guard.documents(run, batch) for batch in run.group],
            run.guard.reason,
            _worst(run, look.calls, worst),
            records.get(step),
            look.differs,
            then,
            steps.machine(run),
        )


def _worst(run: Run, calls: list[tuple[Tensor, Tensor, Tensor]], count: int) -> list[Token]:
    """The predictions of the first call for each row with the largest losses (an attack calls the model again)."""
    found: list[Token] = []
    seen: set[tuple[int, int]] = set()
    for tokens, labels, losses in calls:
        for row in range(len(tokens)):
            place = _place(run.group, tokens[row], seen)
            if place is None:
                continue
            seen.add(place)
            for position in torch.topk(losses[row], min(count, losses.shape[1])).indices.tolist():
                if int(labels[row, position]) != IGNORED:
                    found.append(_token(run, place, tokens[row], labels[row], losses[row], position))
    return sorted(found, key=lambda token: -token.loss)[:count]


def _place(group: list[Batch], row: Tensor, seen: set[tuple[int, int]]) -> tuple[int, int] | None:
    """Which row of which micro-batch this is: micro-batches may have been taken in parts."""
    for number, batch in enumerate(group):
        whole = batch.inputs.get("tokens")
        if whole is None or whole.shape[1:] != row.shape:
            continue
        for at in (whole.cpu() == row).all(1).nonzero().flatten().tolist():
            if (number, at) not in seen:
                return number, at
    return None


def _token(run: Run, place: tuple[int, int], tokens: Tensor, labels: Tensor, losses: Tensor, position: int) -> Token:
    batch = run.group[place[0]]
    first, name = 0, ""
    if "documents" in batch.inputs:
        documents = batch.inputs["documents"][place[1]].cpu()
        number = int(documents[position])
        first = int((documents == number).nonzero()[0])
        if place[1] < len(batch.source) and 0 < number <= len(batch.source[place[1]]):
            piece = batch.source[place[1]][number - 1]
            name = ", ".join(guard.documents(run, Batch(batch.inputs, batch.weight, [[piece]])))
    before = tokens[max(first, position - 15) : position + 1].tolist()
    return Token(float(losses[position]), place[0] + 1, place[1] + 1, position, int(labels[position]), before, name)
