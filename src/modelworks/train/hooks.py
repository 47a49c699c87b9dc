"""What happens after every step: log and show, evaluate and stop early, save. Each hook resumes with the run."""

from __future__ import annotations

import contextlib
import math
import time
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..base import seeds
from . import parallel
from .saving import GRACE, PATIENCE, SHARE, Saver
from .signals import Stopped

if TYPE_CHECKING:
    from .run import Run


class Hook:
    """Parent of the hooks: called after each step, told when the loop begins and when the run is over."""

    def begin(self, run: Run) -> None:
        """The loop begins, or goes on after a restart."""

    def __call__(self, run: Run, logs: dict[str, float]) -> None:
        """A step is done; `logs` are its means."""

    def say(self, note: str) -> None:
        """A word on what is done now, for a hook that shows it."""

    def settle(self, run: Run) -> None:
        """The run is about to go back to an earlier step: have nothing under way."""

    def went_back(self, run: Run) -> None:
        """It did, and `load_state_dict` was called."""

    def finish(self, run: Run) -> None:
        """The run is over."""

    def state_dict(self) -> dict[str, Any]:
        """What must survive a restart: numbers, strings, lists, dicts and tensors."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""


class Evaluate(Hook):
    """Evaluate every so many steps and at the end, on the averaged weights if there are any; stop early if asked.

    An evaluation leaves no trace in training: dropout's random state is put back after it. A signal breaks it
    off, and the restarted run does it again.
    """

    def __init__(self, every: int, patience: int) -> None:
        self.every, self.patience = every, patience
        self.at = 0
        self.seconds = 0.0
        self.best = math.inf
        self.best_step = 0
        self.stale = 0
        self.kept: dict[str, Tensor] = {}
        self.kept_metrics: dict[str, float] = {}

    def begin(self, run: Run) -> None:
        """Do the evaluation that a signal broke off."""
        if run.step:
            self(run, {})

    def __call__(self, run: Run, logs: dict[str, float]) -> None:
        """Evaluate when it is time."""
        due = run.step % self.every == 0 or run.done
        if not due or self.at == run.step:
            return
        started = time.monotonic()
        random = seeds.state()
        try:
            if run.average:
                with run.average.applied():
                    metrics = self._measure(run)
                    self._compare(run, metrics)
            else:
                metrics = self._measure(run)
                self._compare(run, metrics)
        except Stopped:
            return
        finally:
            seeds.restore(random)
            run.model.train()
        self.at, self.seconds = run.step, time.monotonic() - started
        run.metrics = {f"validation_{name}": value for name, value in metrics.items()}
        run.record(run.metrics)

    def _measure(self, run: Run) -> dict[str, float]:
        run.model.eval()
        for hook in run.hooks:
            hook.say("evaluating")
        # ranks that hold one model evaluate it together: none may break off on its own
        breaking = run.interrupt.eager() if run.shards is None else contextlib.nullcontext()
        with breaking, torch.no_grad(), run.computing():
            metrics = dict(run.objective.evaluate(run.model))
            if run.samples:
                run.samples(run)
        return metrics

    def _compare(self, run: Run, metrics: dict[str, float]) -> None:
        if not self.patience:
            return
        if metrics["loss"] < self.best:
            self.best, self.best_step, self.stale = metrics["loss"], run.step, 0
            self.kept = {name: p.detach().clone() for name, p in run.optimizer.names.items()}
            self.kept_metrics = {f"validation_{name}": value for name, value in metrics.items()}
            return
        self.stale += 1
        if self.stale >= self.patience and not run.done:
            run.stopped = f"no better validation loss since step {self.best_step} ({self.best:.4f})"

    def finish(self, run: Run) -> None:
        """Put the best weights into the model."""
        if self.kept:
            with torch.no_grad():
                for name, parameter in run.optimizer.names.items():
                    parameter.copy_(self.kept[name])
            run.metrics = self.kept_metrics | {"best_step": float(self.best_step)}

    def state_dict(self) -> dict[str, Any]:
        """Everything, the best weights too."""
        names = ("at", "best", "best_step", "stale", "kept", "kept_metrics")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it back."""
        for name, value in state.items():
            setattr(self, name, value)


class Save(Hook):
    """Checkpoints every `every` seconds, at the end, and when a signal asks the run to stop."""

    def __init__(self, every: float) -> None:
        self.saver = Saver(every)
        self.at = -1

    @property
    def share(self) -> float:
        """The part of the time that saving adds."""
        return self.saver.cost / max(self.saver.every, self.saver.cost / SHARE, 1e-9)

    def seconds_since(self, moment: float) -> float:
        """Seconds for which the last save stopped the loop, if it began after `moment`."""
        return self.saver.stall if self.saver.began >= moment else 0.0

    def begin(self, run: Run) -> None:
        """Count from here; what was restored is on disk already. What is being written at the end is waited for."""
        self.saver.last, self.at = time.monotonic(), run.step
        run.closing.callback(self.saver.wait, run)
        if run.settings.guard.spikes and not run.step:  # something to go back to
            self.saver.save(run)

    def settle(self, run: Run) -> None:
        """Until nothing is being written."""
        self.saver.wait(run)

    def went_back(self, run: Run) -> None:
        """This step is on disk already."""
        self.at = run.step

    def __call__(self, run: Run, logs: dict[str, float]) -> None:
        """Save when it is time. Raises SystemExit (143 or 130) after the save that a signal asked for.

        Raises FailureError when the last save finds no space on the disk in time.
        """
        self.saver.look(run)
        keep = run.settings.guard.keep_every
        wanted = run.done or self.saver.due or bool(keep and run.step % keep == 0)
        signal, due, broken = parallel.largest(run.interrupt.number, int(wanted), int(run.interrupt.broke_off))
        if (signal or due) and self.at != run.step:
            self.at = run.step
            self.saver.save(run, last=bool(signal) or run.done, patience=GRACE if signal else PATIENCE)
        if signal and (broken or not run.done):
            run.log(f"stopped by a signal after step {run.step} and saved; run the same command to go on")
            raise SystemExit(128 + signal)


def make(run: Run) -> list[Hook]:
    """The hooks of a run in their order: the log first, since a broken-off evaluation comes again, after a restart."""
    from .histograms import Histograms
    from .log import Log
    from .steps import Record, Steps

    settings = run.settings
    every = settings.evaluate_every
    evaluate = [Evaluate(every, settings.patience)] if every else []
    pictures = [Histograms(every)] if every and any(tracker.draws for tracker in run.trackers) else []
    record = Record(next((tracker for tracker in run.trackers if isinstance(tracker, Steps)), None))
    return [record, Log(settings.log_every, run.meter), *pictures, *evaluate, Save(settings.save_every)]
