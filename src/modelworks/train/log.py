"""What a run says while it goes: means over a few steps for the trackers, and the words of the progress line."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from ..base.device import memory
from ..base.distributed import is_main, shares, world_size
from ..base.energy import Meter
from ..base.log import Progress, progress
from .hooks import Evaluate, Hook, Save

if TYPE_CHECKING:
    from .run import Run


class Log(Hook):
    """Means over every `every` steps into the trackers and the progress line, with speed, memory and time left.

    Speed counts the time of steps alone; the time left counts evaluations and checkpoints too. A line is one read of
    the processor's counters and of /proc, about 0.1 ms; nothing else is done between lines.
    """

    def __init__(self, every: int, meter: Meter) -> None:
        self.every, self.meter = every, meter
        self.sums: dict[str, float] = {}
        self.steps = 0
        self.step_seconds = 0.0
        self.bar: Progress | None = None
        self.note = ""
        self.left = -1.0
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

    def went_back(self, run: Run) -> None:
        """Measure speed from here."""
        self._mark = (time.monotonic(), run.positions, run.progress)

    def __call__(self, run: Run, logs: dict[str, float]) -> None:
        """Add up; write at the end of a window."""
        for name, value in logs.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.steps += 1
        if run.step % self.every == 0 or run.done:
            means = {name: value / self.steps for name, value in self.sums.items()}
            run.record(means | {"tokens": float(run.tokens)} | self._now(run, means))
            self.sums, self.steps = {}, 0
        if self.bar:
            done = run.step if run.settings.steps else run.tokens
            self.bar.advance(done - self._shown, self.note, self.left if self.left >= 0 else None)
            self._shown = done

    def say(self, note: str) -> None:
        """A word on the progress line about what is done now."""
        if self.bar:
            self.bar.advance(0, ", ".join(filter(None, (note, self.note))), self.left if self.left >= 0 else None)

    def _now(self, run: Run, means: dict[str, float]) -> dict[str, float]:
        """Speed, share of the machine's matmul peak, seconds left, memory and energy; also the words for the line."""
        rate = self._speed(run)
        self.left = self._left(run)
        held, most = memory(self.meter.device)
        out = {"tokens_per_second": rate, "seconds": run.tick(), "seconds_left": self.left}
        words = [f"loss {means['loss']:.3f}"]
        if "validation_loss" in run.metrics:
            words.append(f"validation {run.metrics['validation_loss']:.3f}")
        words.append(f"{rate:,.0f} tok/s")
        flops = run.plan.get("flops_per_position")
        if flops:
            out["share_of_peak"] = rate * flops / (run.plan["peak_flops"] * world_size())
            words.append(f"{out['share_of_peak']:.0%} of peak")
        if "gradient_norm" in means:
            words.append(f"gradient {means['gradient_norm']:.2g}")
        words.append(f"memory {held / 1e9:.2f} GB (most {most / 1e9:.2f})")
        self.note = ", ".join(words)
        energy = {"memory": float(held), "memory_peak": float(most), "energy_wh": round(self.meter.joules() / 3600, 6)}
        return out | energy

    def _speed(self, run: Run) -> float:
        """Positions a second of all ranks since the last line, evaluations and checkpoints left out."""
        now = time.monotonic()
        then, positions, spent = self._mark
        extra = sum(hook.seconds_since(then) for hook in run.hooks if isinstance(hook, Save))
        extra += sum(hook.seconds for hook in run.hooks if isinstance(hook, Evaluate) and self._in_window(run, hook))
        seconds = max(now - then - extra, 1e-9)
        fresh = seconds / max(run.progress - spent, 1e-12)  # seconds of stepping that a whole budget takes
        self.step_seconds = fresh if not self.step_seconds else 0.7 * self.step_seconds + 0.3 * fresh
        self._mark = (now, run.positions, run.progress)
        return (run.positions - positions) * shares() / seconds

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
        """The sums of the window that is open, and the energy so far."""
        return {"sums": self.sums, "steps": self.steps, "joules": self.meter.joules()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with that window."""
        self.sums, self.steps = dict(state["sums"]), state["steps"]
        self.meter.before = float(state.get("joules", 0.0))
