"""Making batches ahead of the model, in order: the place to resume is that of what was handed out, never of what waits.

    stream.take()  the next groups of the order: cheap, in the caller's thread, one after the other
    make(groups)   their batch (reading, decoding, laying): in line, or in any of `workers` threads
    next()         batches in the stream's order, however long each took

Threads, not processes: laying a packed batch takes 0.1 to 1 ms (bench/train/short_examples.py --laying), less than
sending it between processes; what takes longer (reading a disk, decoding images) lets other threads run meanwhile.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from modelworks.base.protocols import Batch

from .order import Group, Stream

DEPTH = 2  # batches begun for each worker: one in work, one waiting


class Ahead:
    """Batches of a stream, made by `workers` threads ahead of time (0: in line, when asked for).

    `make` must be a pure function of the groups: what is random in it is seeded by the pieces' numbers.
    """

    def __init__(self, stream: Stream, make: Callable[[list[Group]], Batch], workers: int = 0) -> None:
        self.stream, self.make, self.workers = stream, make, workers
        self._waiting: deque[tuple[dict[str, Any], Future[Batch]]] = deque()
        self._pool: ThreadPoolExecutor | None = None

    def next(self) -> Batch:
        """The next batch. Raises what `make` raised for this very batch, not earlier and not later."""
        if not self.workers:
            return self.make(self.stream.take())
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self.workers, "batches")
        while len(self._waiting) < DEPTH * self.workers:
            before = self.stream.place()
            self._waiting.append((before, self._pool.submit(self.make, self.stream.take())))
        batch = self._waiting[0][1].result()
        self._waiting.popleft()
        return batch

    def place(self) -> dict[str, Any]:
        """Where the batch begins that `next` gives next."""
        return self._waiting[0][0] if self._waiting else self.stream.place()

    def go(self, place: dict[str, Any]) -> None:
        """Go on from `place`; what was made ahead is thrown away. Raises UserError where the data is another."""
        self.stream.go(place)
        for _, future in self._waiting:
            future.cancel()
        self._waiting.clear()
