"""SIGTERM and SIGINT: the run saves after the step it is in and ends with 128 + the signal's number (143, 130)."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

from ..base.distributed import world_size

ECHO = 3.0  # seconds


class Stopped(BaseException):
    """Raised inside an evaluation when a signal comes, so that a long one does not delay the save."""


class Interrupt:
    """Remembers that the process was asked to stop. A second signal ends it at once.

    A rank often hears of one wish twice, from a scheduler and from its launcher: what comes within `ECHO` is the same.
    """

    def __init__(self) -> None:
        self.number = 0
        self._at = 0.0
        self.broke_off = False
        """True when an evaluation was left unfinished: then even a run at its end must be taken up again."""
        self._eager = False

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Catch both signals inside the block (only the main thread may; elsewhere nothing changes)."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._handle) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.number:
            if world_size() > 1 and time.monotonic() - self._at < ECHO:
                return
            raise SystemExit(128 + number)
        self.number, self._at = number, time.monotonic()
        if self._eager:
            self.broke_off = True
            raise Stopped

    @contextlib.contextmanager
    def eager(self) -> Iterator[None]:
        """Inside the block a signal raises `Stopped` instead of waiting for the end of the step."""
        if self.number:
            self.broke_off = True
            raise Stopped
        self._eager = True
        try:
            yield
        finally:
            self._eager = False
