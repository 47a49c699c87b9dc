"""What happens after every step: log and show, evaluate and stop early, save. Each hook resumes with the run."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..base import seeds
from ..base.distributed import is_main, world_size
from ..base.log import Progress, duration, progress
from . import checkpoint, parallel
from .signals import Stopped

if TYPE_CHECKING:
    from .run import Run

SAVE_SHARE = 0.05  # checkpoints may take at most this part of the time, however short save_every is


class Hook:
    """Parent of the hooks: called after each step, told when the loop begins and when the run is over."""

    def begin(self, run: Run) -> None:
        """The loop begins, or goes on after a restart."""

    def __call__(self, run: Run, logs: dict[str, float]) -> None:
        """A step is done; `logs` are its means."""

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
        with run.interrupt.eager(), torch.no_grad(), run.computing():
            return dict(run.objective.evaluate(run.model))

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


class Log(Hook):
    """Means over every `every` steps into the trackers and the progress line, with speed and time left.

    Speed counts the time of steps alone; the time left counts evaluations and checkpoints too.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self.sums: dict[str, float] = {}
        self.steps = 0
        self.step_seconds = 0.0
        self.bar: Progress | None = None
        self.note = ""
        self._mark: tuple[float, int, float] = (0.0, 0, 0.0)

    def begin(self, run: Run) -> None:
        """Open the progress line at where the run is."""
        self._mark = (time.monotonic(), run.positions, run.progress)
        if is_main() and not run.done:
            budget = run.settings
            unit, total, done = (
                ("steps", budget.steps, run.step) if budget.steps else ("tok", budget.tokens, run.tokens)
            )
            self.bar = run.closing.enter_context(progress("train", total, unit, done))
        self._shown = run.step if run.settings.steps else run.tokens

    def __call__(self, run: Run, logs: dict[str, float]) -> None:
        """Add up; write at the end of a window."""
        for name, value in logs.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.steps += 1
        if run.step % self.every == 0 or run.done:
            means = {name: value / self.steps for name, value in self.sums.items()}
            run.record(means | {"tokens": float(run.tokens)} | self._speed(run, means["loss"]))
            self.sums, self.steps = {}, 0
        if self.bar:
            done = run.step if run.settings.steps else run.tokens
            self.bar.advance(done - self._shown, self.note)
            self._shown = done

    def _speed(self, run: Run, loss: float) -> dict[str, float]:
        """Positions per second, share of the machine's matmul peak, seconds left; also the words for the line."""
        now = time.monotonic()
        then, positions, spent = self._mark
        extra = sum(hook.seconds_since(then) for hook in run.hooks if isinstance(hook, Save))
        extra += sum(hook.seconds for hook in run.hooks if isinstance(hook, Evaluate) and self._in_window(run, hook))
        seconds = max(now - then - extra, 1e-9)
        rate = (run.positions - positions) * world_size() / seconds
        fresh = seconds / max(run.progress - spent, 1e-12)  # seconds of stepping that a whole budget takes
        self.step_seconds = fresh if not self.step_seconds else 0.7 * self.step_seconds + 0.3 * fresh
        self._mark = (now, run.positions, run.progress)
        left = self._left(run)
        out = {"tokens_per_second": rate, "seconds": run.tick(), "seconds_left": left}
        self.note = f"loss {loss:.3f}, {rate:,.0f} tok/s"
        flops = run.plan.get("flops_per_position")
        if flops:
            out["share_of_peak"] = rate * flops / (run.plan["peak_flops"] * world_size())
            self.note += f", {out['share_of_peak']:.0%} of peak"
        if "validation_loss" in run.metrics:
            self.note += f", validation {run.metrics['validation_loss']:.3f}"
        self.note += f", {duration(left)} left"
        return out

    def _in_window(self, run: Run, hook: Evaluate) -> bool:
        return 0 < hook.at < run.step <= hook.at + self.steps

    def _left(self, run: Run) -> float:
        share = max(0.0, 1 - run.progress)
        seconds = share * self.step_seconds
        steps_left = run.step * share / max(run.progress, 1e-12)
        for hook in run.hooks:
            if isinstance(hook, Evaluate):
                seconds += hook.seconds * steps_left / hook.every
            if isinstance(hook, Save):
                seconds *= 1 + hook.share
        return seconds

    def state_dict(self) -> dict[str, Any]:
        """The sums of the window that is open."""
        return {"sums": self.sums, "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with that window."""
        self.sums, self.steps = dict(state["sums"]), state["steps"]


class Save(Hook):
    """Checkpoints every `every` seconds, at the end, and when a signal asks the run to stop."""

    def __init__(self, every: float) -> None:
        self.every = every
        self.last = self.began = time.monotonic()
        self.took = 0.0
        self.at = -1

    @property
    def share(self) -> float:
        """The part of the time that saving adds."""
        return self.took / max(self.every, self.took / SAVE_SHARE, 1e-9)

    def seconds_since(self, moment: float) -> float:
        """Seconds spent in the last save, if it began after `moment`."""
        return self.took if self.began >= moment else 0.0

    def begin(self, run: Run) -> None:
        """Count from here; what was restored is on disk already."""
        self.last, self.at = time.monotonic(), run.step

    def __call__(self, run: Run, logs: dict[str, float]) -> None:
        """Save when it is time. Raises SystemExit (143 or 130) after the save that a signal asked for."""
        pause = max(self.every, self.took / SAVE_SHARE if self.every else 0.0)
        wanted = run.done or time.monotonic() - self.last >= pause
        signal, due, broken = parallel.largest(run.interrupt.number, int(wanted), int(run.interrupt.broke_off))
        if (signal or due) and self.at != run.step:
            self.began = time.monotonic()
            checkpoint.save(run)
            self.last, self.at = time.monotonic(), run.step
            self.took = self.last - self.began
        if signal and (broken or not run.done):
            run.log(f"stopped by a signal after step {run.step} and saved; run the same command to go on")
            raise SystemExit(128 + signal)


def make(run: Run) -> list[Hook]:
    """The hooks of a run in their order: the log first, since a broken-off evaluation comes again, after a restart."""
    settings = run.settings
    evaluate = [Evaluate(settings.evaluate_every, settings.patience)] if settings.evaluate_every else []
    return [Log(settings.log_every), *evaluate, Save(settings.save_every)]
