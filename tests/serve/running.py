"""A real server in a thread, over a tiny real model and an assistant made of a fake."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI

from modelworks.serve.app import create_app
from modelworks.serve.server import Draining, listen
from modelworks.serve.settings import ServeSettings

from ..infer.tiny import language_model


@dataclasses.dataclass
class Passage:
    id: str
    title: str
    text: str
    source: str


@dataclasses.dataclass
class Answer:
    text: str
    kind: str
    citations: tuple[Passage, ...]


class Assistant:
    """Answers at once, always the same; `answer` is what tells the server that it is one."""

    about = {"title": "Desk", "examples": ["What is it?"]}  # noqa: RUF012

    def __init__(self) -> None:
        self.tokenizer = language_model().tokenizer
        self.asked: list[Any] = []

    def answer(self, question: Any) -> Answer:
        self.asked.append(question)
        return Answer("It joins paths. 它连接路径。\n\nSee [1].", "own", (Passage("p1", "join", "Join two.", "os.py"),))


@contextlib.contextmanager
def serving(models: dict[str, Any] | None = None, **settings: Any) -> Iterator[tuple[str, FastAPI, Draining]]:
    """Address, application and server; ends with the block."""
    chosen = ServeSettings(port=0, **{"api_keys": [], **settings})
    app = create_app(models or {"tiny": language_model(), "desk": Assistant()}, chosen)
    with listen(chosen) as socket:
        server = Draining(app, chosen)
        thread = threading.Thread(target=server.run, args=([socket],), daemon=True)
        thread.start()
        deadline = time.monotonic() + 30
        while not server.started and time.monotonic() < deadline:
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{socket.getsockname()[1]}", app, server
        finally:
            server.should_exit = server.force_exit = True
            thread.join(20)


def until(condition: Any, seconds: float = 20) -> bool:
    """True once `condition` holds, False when it never did."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.01)
    return bool(condition())
