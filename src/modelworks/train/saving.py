"""Saving beside training: a copy of one step is written by a thread while the next steps are taken.

    loop     step | copy | step step step step step step ... | copy | step ...
    writer               | write + hash, fsync, rename, prune |

What the run pays is the copy, and the processor's time of the writer; what it needs is memory for the copy, as many
bytes as the checkpoint has, while it is written. A save that is quicker than `IN_LINE`, or for whose copy there is no
memory, is done in line instead, as is the last one. The files are the same, bit for bit, either way.

A disk that takes nothing (full, read-only, broken) stops no run: it is said, training goes on and tries again; only
the last save waits for space, and fails after `PATIENCE`.
"""

from __future__ import annotations

import functools
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ..base.errors import FailureError
from ..base.log import duration
from . import checkpoint, parallel

if TYPE_CHECKING:
    from .run import Run

Store = Callable[[], object]

IN_LINE = 0.05  # seconds; what is saved quicker gains nothing from a thread
SPEED = 2e8  # bytes a second that a disk is thought to take before it was measured
RETRY = 10.0  # seconds after which a save that failed is tried again (sooner where checkpoints come sooner)
NOTICE = 60.0  # seconds between two sentences on one trouble
PATIENCE = 600.0  # seconds that a run at its end waits for space
GRACE = 5.0  # the same for a run that a signal ended: whoever sent it will not wait long
SHARE = 0.05  # checkpoints may take at most this part of the time, however short `every` is


class Saver:
    """Takes snapshots, has them written, and remembers what it cost and what went wrong."""

    def __init__(self, every: float) -> None:
        self.every = every
        self.last = self.began = time.monotonic()
        self.stall = 0.0
        """Seconds that the loop stood still in the last save."""
        self.work = 0.0
        """Seconds of a processor that the writer then took from training."""
        self.failures = 0
        """Saves in a row that did not reach the disk."""
        self._seconds = 0.0
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._back = False
        self._said: dict[str, float] = {}

    @property
    def cost(self) -> float:
        """Seconds that the last save cost the run."""
        return self.stall + self.work

    @property
    def due(self) -> bool:
        """True when it is time for the next save and the one before it is written (`every` 0: always)."""
        if self.every and self._thread is not None and self._thread.is_alive():
            return False
        pause = max(self.every, self.cost / SHARE if self.every else 0.0)
        return time.monotonic() - self.last >= (min(self.every, RETRY) if self.failures else pause)

    def save(self, run: Run, last: bool = False, patience: float = PATIENCE) -> None:
        """Save this step: beside training, or, when it is the `last`, before anything else. Every rank must call it.

        Raises FailureError when the last could not be saved for `patience` seconds, or what a bug in the writer
        raised; any other save that fails is told and tried again later.
        """
        self.began = time.monotonic()
        self.wait(run)
        beside = not last and run.shards is None and self._beside(run)
        store = self._store(run, beside)
        self.work = 0.0
        if store is not None and beside:
            self._thread = threading.Thread(target=self._write, args=(store,), name="checkpoint", daemon=True)
            self._thread.start()
        elif store is not None:
            self._write(store)
            if last:
                self._insist(run, store, patience)
            self.look(run)
        self.last = time.monotonic()
        self.stall = self.last - self.began

    def _store(self, run: Run, beside: bool) -> Store | None:
        """What is left to do once the step is taken down; nothing for ranks that do not write."""
        if run.shards is not None:  # all ranks write, and talk while they do
            return lambda: checkpoint.save(run)
        taken = checkpoint.snapshot(run, copy=beside)
        return functools.partial(checkpoint.store, taken) if taken is not None else None

    def look(self, run: Run) -> None:
        """Say what trouble there is with the disk. Raises what was no trouble with the disk but a bug."""
        for tracker in run.trackers:
            if tracker.trouble:
                self._say(run, tracker.trouble, f"{tracker.trouble}; training goes on, and what it logs waits.")
        if self._thread is not None and not self._thread.is_alive():
            self._thread = None
        if self._back:
            run.log(f"{run.folder}: checkpoints are written again.")
            self._back = False
        if self._thread is not None or self._error is None:
            return
        error, self._error = self._error, None
        if not _disk(error):
            raise error
        self._say(
            run,
            "save",
            f"{run.folder}: a checkpoint could not be written ({_reason(error)}); training goes on and tries again"
            f"{_stands(run)}: make room.",
        )

    def wait(self, run: Run) -> None:
        """Until nothing is being written. Raises as `look` does."""
        if self._thread is not None:
            self._thread.join()
        self.look(run)

    def _write(self, store: Store) -> None:
        """In the loop or in the thread: store, and remember how it went."""
        began, worked = time.monotonic(), time.thread_time()
        try:
            store()
            self._back = self.failures > 0
            self.failures = 0
        except BaseException as error:  # whatever it is, it must reach the loop
            self._error = error
            self.failures += 1
        self._seconds = time.monotonic() - began
        if threading.current_thread() is self._thread:
            self.work = time.thread_time() - worked

    def _insist(self, run: Run, store: Store, patience: float) -> None:
        """Try again until it is written, or `patience` is over, or a signal says that there is less time."""
        began = time.monotonic()
        while self._error is not None and _disk(self._error):
            spent = time.monotonic() - began
            left = (min(patience, GRACE) if run.interrupt.number else patience) - spent
            over = left <= 0
            if run.shards is not None:  # the first to lose patience takes the others along
                over = bool(parallel.largest(int(over))[0])
            if over:
                raise FailureError(
                    f"{run.folder}: the checkpoint of step {run.step} could not be written for {duration(spent)} "
                    f"({_reason(self._error)}){_stands(run)}: make room and run the same command again."
                ) from self._error
            sentence = (
                f"the last checkpoint cannot be written ({_reason(self._error)}); waiting {duration(left)} for space."
            )
            self._say(run, "last", f"{run.folder}: {sentence}")
            time.sleep(min(0.5, max(0.0, left)))
            self._error = None
            self._write(store)

    def _beside(self, run: Run) -> bool:
        """True when a thread saves time and there is memory for a copy (twice over, so that the loop keeps some)."""
        size = size_of(run)
        return (self._seconds or size / SPEED) > IN_LINE and 2 * size < spare()

    def _say(self, run: Run, what: str, sentence: str) -> None:
        if time.monotonic() - self._said.get(what, -NOTICE) >= NOTICE:
            self._said[what] = time.monotonic()
            run.log(sentence)


def size_of(run: Run) -> int:
    """About the bytes of a checkpoint: weights, momenta and averages."""
    tensors = [*checkpoint.model_tensors(run.model).values(), *run.optimizer.tensors().values()]
    tensors += run.average.tensors().values() if run.average else []
    return sum(tensor.nbytes for tensor in tensors)


def spare() -> int:
    """Bytes of memory that may still be taken: the machine's, and the container's if it has a limit."""
    pages = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        pages = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text())
        return min(pages, limit - int((group / "memory.current").read_text()))
    except (OSError, ValueError, StopIteration):  # another system, or no limit
        return pages


def _stands(run: Run) -> str:
    have = checkpoint.found(run.folder)
    return f", {have[0].name} stands" if have else ""


def _disk(error: BaseException) -> bool:
    return isinstance(error, OSError) or (isinstance(error, FailureError) and isinstance(error.__cause__, OSError))


def _reason(error: BaseException) -> str:
    cause = error.__cause__ or error
    return (cause.strerror if isinstance(cause, OSError) else "") or str(error)
