"""The live panel of a terminal: a bar with how far, and under it a few words on how it goes."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import Any

from .log import Progress, duration

HERTZ = 2.0  # numbers that change more often cannot be read, and each drawing takes about a millisecond


_open = False


class Panel:
    """Drawn by rich a few times a second; what others print appears above it."""

    def __init__(self, what: str, total: float | None, unit: str, done: float) -> None:
        self.what, self.total, self.unit, self.done, self.first = what, total, unit, done, done
        self.note, self.left, self.told = "", -1.0, time.monotonic()
        self.started = self.told

    def advance(self, amount: float = 1, note: str = "", left: float | None = None) -> None:
        """Count; a note replaces the one before, `left` (seconds) our own estimate."""
        self.done += amount
        self.note = note or self.note
        if left is not None and left != self.left:
            self.left, self.told = left, time.monotonic()

    def _rate(self) -> float:
        return (self.done - self.first) / max(time.monotonic() - self.started, 1e-9)

    def _time(self) -> str:
        """What is left, counting down also while nothing advances."""
        if self.left >= 0:
            return f"{duration(max(self.left - (time.monotonic() - self.told), 0.0))} left"
        rate = self._rate()
        return f"{duration((self.total - self.done) / rate)} left" if self.total and rate > 0 else ""

    def _speed(self) -> str:
        rate = self._rate()
        return f"{rate:,.0f} {self.unit}/s" if rate >= 1 and self.left < 0 else ""

    def __rich__(self) -> Any:
        from rich.console import Group
        from rich.padding import Padding
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        line = Table.grid(padding=(0, 1), expand=False)
        cells: list[Any] = [Text(self.what, style="bold")]
        if self.total:
            cells += [ProgressBar(self.total, min(self.done, self.total), width=30)]
            cells += [f"{min(self.done / self.total, 1):4.0%}", f"{self.done:,.0f}/{self.total:,.0f} {self.unit}"]
        else:
            cells += [f"{self.done:,.0f} {self.unit}"]
        cells += [text for text in (self._speed(), self._time()) if text]
        line.add_row(*cells)
        return Group(line, Padding(Text(self.note, style="dim"), (0, 0, 0, 2))) if self.note else line


@contextlib.contextmanager
def panel(what: str, total: float | None, unit: str, done: float) -> Iterator[Progress]:
    """Show a panel on stderr while the block runs; it leaves nothing behind."""
    global _open
    shown = Panel(what, total, unit, done)
    if _open:  # one at a time: a job inside another does not show
        yield shown
        return
    from rich.console import Console
    from rich.live import Live

    _open = True
    live = Live(
        shown,
        console=Console(stderr=True),
        refresh_per_second=HERTZ,
        transient=True,
        redirect_stdout=sys.stdout.isatty(),
    )
    try:
        with live:
            yield shown
    finally:
        _open = False
