"""A stand-in for the server, speaking the same protocol: what it answers follows from the question asked."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from fastapi.staticfiles import StaticFiles
from starlette.middleware.base import RequestResponseEndpoint

import modelworks.serve.studio as studio

STATIC = Path(studio.__file__).parent / "static"
CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "font-src 'self'; base-uri 'none'; frame-ancestors 'none'; form-action 'none'"
)
MODELS = [
    {
        "id": "assistant",
        "object": "model",
        "title": "Python service desk",
        "description": "Ask about the Python standard library. Every answer rests on the documentation and shows the passage.",
        "examples": [
            "What does os.path.join do?",
            "How do I read a CSV file with a header row?",
            "Which exception does int() raise for bad text?",
            "What is the capital of France?",
        ],
    },
    {"id": "base", "object": "model"},
]
PASSAGES = [
    {
        "id": "os.path.join",
        "title": "os.path.join(path, *paths)",
        "text": "os.path.join(path, *paths)\n\nJoin one or more path segments intelligently. The return value is the "
        "concatenation of path and all members of *paths, with exactly one\nseparator following each non-empty part "
        "except the last. If a segment is an absolute path, all previous segments are ignored.",
        "source": "Lib/posixpath.py",
    },
    {
        "id": "pathlib.PurePath.joinpath",
        "title": "pathlib.PurePath.joinpath(*pathsegments)",
        "text": "Combine this path with one or several arguments.\n\n    >>> PurePosixPath('/etc').joinpath('passwd')\n"
        "    PurePosixPath('/etc/passwd')",
        "source": "https://docs.python.org/3/library/pathlib.html",
    },
]
ANSWER = (
    "`os.path.join` puts path segments together with the right separator [1]. If a segment is an absolute path, "
    "all previous segments are ignored.\n\n- It never touches the disk.\n- A **trailing separator** appears only when "
    "the last part is empty.\n\n```python\n>>> os.path.join('/var', 'log', 'app.txt')\n'/var/log/app.txt'\n```\n\n"
    "For objects instead of strings, see `PurePath.joinpath` [2]."
)
ANSWER_ZH = "`os.path.join` 用正确的分隔符把几段路径**连接**在一起 [1]。如果某一段是绝对路径，前面的各段都会被忽略。"


class Stub:
    """What the server saw, and knobs for the tests."""

    def __init__(self) -> None:
        self.payloads: dict[str, str] = {}  # question -> answer
        self.bodies: list[dict[str, Any]] = []
        self.stopped = threading.Event()
        self.key: str | None = None
        self.busy = 0  # how many more requests are turned away


def chunk(delta: dict[str, Any], finish: str | None = None) -> str:
    return f"data: {json.dumps({'choices': [{'index': 0, 'delta': delta, 'finish_reason': finish}]})}\n\n"


async def slow(stub: Stub) -> AsyncIterator[str]:
    try:
        for number in range(600):
            yield chunk({"content": f"word{number} "})
            await asyncio.sleep(0.05)
    finally:
        stub.stopped.set()


async def broken() -> AsyncIterator[str]:
    yield chunk({"content": "This answer will not"})


async def refused() -> AsyncIterator[str]:
    yield chunk({"content": "Half"})
    yield f"data: {json.dumps({'error': {'message': 'The model stopped at a number that is not finite.'}})}\n\n"


async def write(answer: str, last: dict[str, Any], pause: float = 0.004) -> AsyncIterator[str]:
    yield chunk({"role": "assistant", "content": ""})
    for piece in re.findall(r".{1,7}", answer, re.DOTALL):
        yield chunk({"content": piece})
        await asyncio.sleep(pause)
    yield ": a comment keeps the line open\n\n"
    yield chunk(last, "stop")
    yield "data: [DONE]\n\n"


def answer_to(question: str, stub: Stub) -> AsyncIterator[str]:
    if question in stub.payloads:
        hostile = stub.payloads[question]
        passage = {"id": hostile, "title": hostile, "text": hostile, "source": hostile}
        return write(hostile, {"citations": [passage], "grounding": "own"}, pause=0)
    if question.startswith("slow"):
        return slow(stub)
    if question == "broken":
        return broken()
    if question == "error":
        return refused()
    if "France" in question:
        return write("I don't know: the documentation says nothing about this.", {"grounding": "declined"})
    if "CSV" in question:
        passage = {
            "id": "csv",
            "title": "csv.DictReader",
            "text": "The rows are read as dictionaries.",
            "source": "Lib/csv.py",
        }
        return write("The rows are read as dictionaries.", {"citations": [passage], "grounding": "quoted"})
    text = ANSWER_ZH if re.search("[\u4e00-\u9fff]", question) else ANSWER
    return write(text, {"citations": PASSAGES, "grounding": "own"})


def stub_app(stub: Stub) -> FastAPI:
    app = FastAPI()

    @app.middleware("http")
    async def policy(request: Request, call_next: RequestResponseEndpoint) -> Response:
        response = await call_next(request)
        response.headers["content-security-policy"] = CSP
        response.headers["x-content-type-options"] = "nosniff"
        return response

    def refusal(request: Request) -> JSONResponse | None:
        if stub.key and request.headers.get("authorization") != f"Bearer {stub.key}":
            return JSONResponse({"error": {"message": "a key is needed", "code": "invalid_api_key"}}, 401)
        return None

    @app.get("/v1/models")
    async def models(request: Request) -> Response:
        return refusal(request) or JSONResponse({"object": "list", "data": MODELS})

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        if no := refusal(request):
            return no
        if stub.busy:
            stub.busy -= 1
            return JSONResponse({"error": {"message": "queue is full"}}, 429, {"retry-after": "1"})
        body = await request.json()
        stub.bodies.append(body)
        question = body["messages"][-1]["content"]
        if question.startswith("long") and len(body["messages"]) > 1:
            return JSONResponse({"error": {"message": "too long", "code": "context_length_exceeded"}}, 400)
        if question == "bad":
            return JSONResponse({"error": {"message": "temperature must be at most 2."}}, 400)
        return StreamingResponse(answer_to(question, stub), media_type="text/event-stream")

    app.mount("/", StaticFiles(directory=STATIC, html=True))
    return app


@contextmanager
def serving(app: FastAPI) -> Iterator[str]:
    """Runs an app on a free port of this machine in a thread; gives its address."""
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        port = door.getsockname()[1]
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [door]}, daemon=True)
        thread.start()
        deadline = time.monotonic() + 20
        while not server.started and time.monotonic() < deadline:
            time.sleep(0.02)
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            server.should_exit = True
            thread.join(10)
