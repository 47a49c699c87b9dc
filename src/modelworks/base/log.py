"""Logging and progress: rich on a terminal, plain sparse lines elsewhere, results on stdout, the rest on stderr."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from collections.abc import Iterator
from typing import Protocol

logger = logging.getLogger("modelworks")


def setup(level: str = "warning") -> None:
    """Configure our logger once: one line a record on stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    logger.handlers[:] = [handler]
    logger.setLevel(level.upper())


def interactive() -> bool:
    """True when stderr is a terminal and nobody asked for quiet (MODELWORKS_QUIET, CI)."""
    return sys.stderr.isatty() and not os.environ.get("MODELWORKS_QUIET") and not os.environ.get("CI")


def say(text: str) -> None:
    """One line for people, on stderr (so that stdout holds results only)."""
    print(text, file=sys.stderr, flush=True)


class Progress(Protocol):
    """A job's progress: `advance` by how much was done, with a few words on how it goes."""

    def advance(self, amount: float = 1, note: str = "") -> None: ...


class _Plain:
    """Off a terminal: a line every thirty seconds, so that a log shows life and stays short."""

    def __init__(self, what: str, total: float | None, unit: str, done: float) -> None:
        self.what, self.total, self.unit, self.done, self.first = what, total, unit, done, done
        self.started = self.said = time.monotonic()

    def advance(self, amount: float = 1, note: str = "") -> None:
        self.done += amount
        now = time.monotonic()
        if now - self.said < 30:
            return
        self.said = now
        rate = (self.done - self.first) / max(now - self.started, 1e-9)
        left = f", {duration((self.total - self.done) / rate)} left" if self.total and rate > 0 else ""
        of = f"/{self.total:,.0f}" if self.total else ""
        say(f"{self.what}: {self.done:,.0f}{of} {self.unit}, {rate:,.0f}/s{left}{', ' + note if note else ''}")


class _Bar:
    """On a terminal: one live line with rate and time left."""

    def __init__(self, bar: object, task: object) -> None:
        self.bar, self.task = bar, task

    def advance(self, amount: float = 1, note: str = "") -> None:
        self.bar.update(self.task, advance=amount, note=note)  # type: ignore[attr-defined]


@contextlib.contextmanager
def progress(what: str, total: float | None = None, unit: str = "it", done: float = 0) -> Iterator[Progress]:
    """Show how far a job is: rate, time left and a note. `done` is where a resumed job starts."""
    if not interactive():
        yield _Plain(what, total, unit, done)
        return
    from rich.console import Console
    from rich.progress import BarColumn, ProgressColumn, SpinnerColumn, Task, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.speed:,.0f} {unit}/s" if task.speed else "", style="cyan")

    columns = [SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%")]
    columns += [Rate(), TimeRemainingColumn(), TextColumn("{task.fields[note]}", style="dim")]
    with RichProgress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total, completed=int(done), note="")
        yield _Bar(bar, task)


def duration(seconds: float) -> str:
    """'0.4 s', '12 s', '3 min 05 s', '2 h 10 min'."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{int(seconds // 60)} min {int(seconds % 60):02d} s"
    return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60):02d} min"
