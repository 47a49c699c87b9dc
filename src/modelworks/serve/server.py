"""uvicorn with a drain: after the first signal it still listens, says that it is not ready, and finishes what runs."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from types import FrameType

import uvicorn
from fastapi import FastAPI

from modelworks.base.errors import UserError

from .settings import ServeSettings


@contextlib.contextmanager
def listen(settings: ServeSettings) -> Iterator[socket.socket]:
    """A bound socket. Raises UserError where the address is taken or not ours."""
    host = settings.host.strip("[]")
    try:
        family = socket.getaddrinfo(host, settings.port, type=socket.SOCK_STREAM)[0][0]
        bound = socket.socket(family, socket.SOCK_STREAM)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, settings.port))
    except OSError as error:
        raise UserError(
            f"cannot listen on {settings.host}:{settings.port} ({error.strerror}); choose another --port or --host."
        ) from None
    with bound:
        yield bound


class Draining(uvicorn.Server):
    """The first signal drains, a second one ends at once."""

    def __init__(self, app: FastAPI, settings: ServeSettings) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                log_level="warning",
                access_log=False,
                server_header=False,
                proxy_headers=False,  # a forwarded address is the client's own word
                ws="none",
                h11_max_incomplete_event_size=32_768,
                limit_concurrency=None,
                timeout_keep_alive=15,
                timeout_graceful_shutdown=2,
            )
        )
        self.worker, self.settings = app.state.worker, settings
        self.draining_since: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.draining_since is None:
            self.worker.draining = True
            self.draining_since = time.monotonic()
        else:
            self.force_exit = self.should_exit = True

    async def on_tick(self, counter: int) -> bool:
        if self.draining_since is not None:
            waited = time.monotonic() - self.draining_since
            if not self.worker.pending or waited > self.settings.drain_seconds:
                self.should_exit = True
        return await super().on_tick(counter)
