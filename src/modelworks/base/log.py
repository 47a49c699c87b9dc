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
PAUSE = 30.0  # seconds between plain lines
_muted = False


def mute() -> None:
    """Say nothing more from this process: of several that do the same, one speaks."""
    global _muted
    _muted = True


def setup(level: str = "warning") -> None:
    """Configure our logger once: one line a record on stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    logger.handlers[:] = [handler]
    logger.setLevel(level.upper())


def interactive() -> bool:
    """True when stderr is a terminal and nobody asked for quiet (MODELWORKS_QUIET, CI)."""
    return not _muted and sys.stderr.isatty() and not os.environ.get("MODELWORKS_QUIET") and not os.environ.get("CI")


def say(text: str) -> None:
    """One line for people, on stderr (so that stdout holds results only)."""
    if not _muted:
        print(text, file=sys.stderr, flush=True)


class Progress(Protocol):
    """A job's progress: `advance` by how much was done, with a few words on how it goes.

    `left` are the seconds to the end, where the job knows better than what the pace so far says.
    """

    def advance(self, amount: float = 1, note: str = "", left: float | None = None) -> None: ...


class _Plain:
    """Off a terminal: a line every thirty seconds, so that a log shows life and stays short; none when quiet."""

    def __init__(self, what: str, total: float | None, unit: str, done: float) -> None:
        self.what, self.total, self.unit, self.done, self.first = what, total, unit, done, done
        self.started = self.said = time.monotonic()

    def advance(self, amount: float = 1, note: str = "", left: float | None = None) -> None:
        self.done += amount
        now = time.monotonic()
        if now - self.said < PAUSE or os.environ.get("MODELWORKS_QUIET"):
            return
        self.said = now
        rate = (self.done - self.first) / max(now - self.started, 1e-9)
        parts = [f"{self.what}: {self.done:,.0f}{f'/{self.total:,.0f}' if self.total else ''} {self.unit}"]
        if left is None:
            parts.append(f"{rate:,.0f}/s")
            left = (self.total - self.done) / rate if self.total and rate > 0 else None
        parts += [note] if note else []
        parts += [f"{duration(left)} left"] if left is not None else []
        say(", ".join(parts))


@contextlib.contextmanager
def progress(what: str, total: float | None = None, unit: str = "it", done: float = 0) -> Iterator[Progress]:
    """Show how far a job is: rate, time left and a note. `done` is where a resumed job starts."""
    if not interactive():
        yield _Plain(what, total, unit, done)
        return
    from .panel import panel

    with panel(what, total, unit, done) as shown:
        yield shown


def duration(seconds: float) -> str:
    """'0.4 s', '12 s', '3 min 05 s', '2 h 10 min'."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{int(seconds // 60)} min {int(seconds % 60):02d} s"
    return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60):02d} min"
