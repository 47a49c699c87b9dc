"""The one compute thread: it batches what waits, tells each request what is new, and forgets who is gone.

    event loop: submit ─▶ inbox ─▶ thread: schedulers step by step ─▶ events ─▶ each request's own queue

Only this thread touches the models. A request is a `Job`: continuations that join the running batch of their
model, or one call (an assistant's checked answer), which runs between two steps of the others.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from modelworks.base.errors import UserError
from modelworks.base.log import logger
from modelworks.infer.scheduler import Generation, Scheduler

from .errors import ApiError
from .metrics import Metrics
from .settings import ServeSettings

Logprob = tuple[int, float, list[tuple[int, float]]]  # token, log-probability, likeliest alternatives


@dataclass(slots=True)
class Event:
    """What is new about a request: text of its continuation `index`, its end, a call's result or an error."""

    index: int = 0
    text: str = ""
    reason: str | None = None
    logprob: Logprob | None = None
    result: Any = None
    error: ApiError | None = None


@dataclass(eq=False)
class Job:
    """A request on its way through the worker."""

    name: str
    entry: Any
    generations: list[Generation] = field(default_factory=list)
    call: Callable[[], Any] | None = None
    deadline: float = 0.0
    gone: bool = False
    """Set by whoever no longer wants it; the worker drops it before the next token."""
    over: bool = False
    started: float = field(default_factory=time.monotonic)
    first: bool = True
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    queue: asyncio.Queue[Event] = field(default_factory=asyncio.Queue)

    @property
    def size(self) -> int:
        """Places that it takes in the queue."""
        return max(1, len(self.generations))

    async def events(self) -> AsyncIterator[Event]:
        """What happens to it until all of it has ended. Raises ApiError where it failed."""
        left = self.size
        try:
            while left:
                event = await self.queue.get()
                if event.error is not None:
                    raise event.error
                yield event
                left -= event.reason is not None
        finally:
            self.gone = True


class Worker:
    """Owns the thread. `submit` is called in the event loop, everything else of a job happens in the thread."""

    def __init__(self, settings: ServeSettings, metrics: Metrics) -> None:
        self.settings, self.metrics = settings, metrics
        self.draining = False
        self.pending = 0
        self._closing = False
        self._progress = time.monotonic()
        self._wake = threading.Condition()
        self._inbox: deque[Job] = deque()
        self._jobs: list[Job] = []
        self._calls: deque[Job] = deque()
        self._schedulers: dict[int, Scheduler] = {}
        self._seconds = 1.0  # smoothed time of a request, for Retry-After
        self._thread = threading.Thread(target=self._run, name="modelworks-compute", daemon=True)

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def close(self) -> None:
        """Drop everything and end the thread."""
        self.draining = self._closing = True
        with self._wake:
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join(5)

    def trouble(self) -> str | None:
        """Why no request should come here now, or None."""
        if self.draining:
            return "draining"
        if not self._thread.is_alive():
            return "stopped"
        if self.pending and time.monotonic() - self._progress > self.settings.stuck_seconds:
            return "stuck"
        return None

    @property
    def alive(self) -> bool:
        """False when the thread has ended: only a new process helps."""
        return self._thread.is_alive()

    def submit(self, job: Job) -> Job:
        """Take a job in. Raises ApiError: 503 while draining or stuck, 429 when the queue is full."""
        reason = self.trouble()
        if reason is not None:
            self.metrics.refused.labels(reason).inc()
            raise ApiError(503, f"the server takes no requests now ({reason}).", "unavailable", retry_after=5)
        with self._wake:
            if self.pending + job.size > self.settings.max_queue:
                self.metrics.refused.labels("queue").inc()
                wait = max(1, min(60, round(self._seconds * self.pending / self.settings.max_rows)))
                raise ApiError(429, "the queue is full; try again later.", "queue_full", retry_after=wait)
            if not self.pending:
                self._progress = time.monotonic()
            job.deadline = time.monotonic() + self.settings.request_seconds
            self._count(job.size)
            self._inbox.append(job)
            self._wake.notify()
        return job

    def _count(self, change: int) -> None:
        self.pending += change
        self.metrics.queue.set(self.pending)

    def _run(self) -> None:
        while True:
            with self._wake:
                while not (self._inbox or self._jobs or self._closing):
                    self._wake.wait()
                fresh = list(self._inbox)
                self._inbox.clear()
            if self._closing:
                for job in [*self._jobs, *fresh]:
                    self._fail(job, ApiError(503, "the server is stopping.", "unavailable"))
                return
            for job in fresh:
                self._admit(job)
            self._drop()
            for key, scheduler in list(self._schedulers.items()):
                self._step(key, scheduler)
            if self._calls:
                self._answer(self._calls.popleft())
            self._progress = time.monotonic()

    def _admit(self, job: Job) -> None:
        self._jobs.append(job)
        if job.call is not None:
            self._calls.append(job)
            return
        key = id(job.entry.engine)  # models of one base share it, and so a batch
        if key not in self._schedulers:
            self._schedulers[key] = job.entry.engine.scheduler(self.settings.max_rows)
        for generation in job.generations:
            self._schedulers[key].add(generation)

    def _drop(self) -> None:
        """Let go of those whose client is gone or whose time is up."""
        now = time.monotonic()
        for job in [job for job in self._jobs if job.gone or now > job.deadline]:
            if job.gone:
                self.metrics.cancelled.inc()
            self._fail(job, ApiError(504, "the request took too long.", "timeout"))

    def _fail(self, job: Job, error: ApiError) -> None:
        for generation in job.generations:
            if id(job.entry.engine) in self._schedulers:
                self._schedulers[id(job.entry.engine)].cancel(generation)
        if job in self._calls:
            self._calls.remove(job)
        self._tell(job, [Event(error=error)])
        self._finish(job)

    def _step(self, key: int, scheduler: Scheduler) -> None:
        jobs = [job for job in self._jobs if job.generations and id(job.entry.engine) == key]
        if not scheduler.busy:
            del self._schedulers[key]
            return
        try:
            moved = set(scheduler.step())
        except Exception as error:  # one bad batch must not end the server
            logger.error("a step of the model failed", exc_info=error)
            self.metrics.failed.inc()
            del self._schedulers[key]
            for job in jobs:
                self._fail(job, ApiError(500, "the model failed at this request; the server's log says why."))
            return
        for job in jobs:
            events = [_event(i, g) for i, g in enumerate(job.generations) if g in moved]
            if events:
                self._tell(job, events)
            if all(g.reason is not None for g in job.generations):
                self._finish(job)

    def _answer(self, job: Job) -> None:
        assert job.call is not None
        try:
            event = Event(result=job.call(), reason="stop")
        except UserError as error:
            event = Event(error=ApiError(400, str(error)))
        except Exception as error:  # as above
            logger.error("an answer failed", exc_info=error)
            self.metrics.failed.inc()
            event = Event(error=ApiError(500, "the model failed at this request; the server's log says why."))
        self._tell(job, [event])
        self._finish(job)

    def _tell(self, job: Job, events: list[Event]) -> None:
        if job.first and events[0].error is None:
            job.first = False
            self.metrics.first.labels(job.name).observe(time.monotonic() - job.started)

        def put() -> None:
            for event in events:
                job.queue.put_nowait(event)

        try:
            job.loop.call_soon_threadsafe(put)
        except RuntimeError:  # its event loop is closed: nobody listens any more
            job.gone = True

    def _finish(self, job: Job) -> None:
        if job.over:
            return
        job.over = True
        if job in self._jobs:
            self._jobs.remove(job)
        written = sum(len(g.tokens) for g in job.generations)
        self.metrics.tokens.labels(job.name, "written").inc(written)
        self.metrics.tokens.labels(job.name, "read").inc(sum(len(g.prompt) for g in job.generations))
        self._seconds += 0.2 * (time.monotonic() - job.started - self._seconds)
        with self._wake:
            self._count(-job.size)


def _event(index: int, generation: Generation) -> Event:
    logprob = None
    if generation.settings.logprobs:
        likeliest = generation.alternatives[-1] if generation.alternatives else []
        logprob = (generation.tokens[-1], generation.logprobs[-1], likeliest)
    return Event(index, generation.fresh, generation.reason, logprob)
