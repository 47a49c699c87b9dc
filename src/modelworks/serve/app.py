"""The HTTP door: which route does what, and the start and end of the server."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse, Response

from modelworks.base.log import say

from . import errors
from .completions import Completions
from .guard import Guard, KeyCheck
from .metrics import Metrics
from .page import Page
from .registry import Registry
from .settings import ServeSettings
from .worker import Worker


def create_app(models: dict[str, Any], settings: ServeSettings | None = None) -> FastAPI:
    """The application that serves `models` (name -> LanguageModel or Assistant).

    `app.state` holds settings, registry, worker and metrics. The compute thread runs while the application
    does (its lifespan). Raises UserError where there is no model, or a public address without a key.
    """
    settings = settings or ServeSettings()
    settings.check()
    registry, metrics, page = Registry(models), Metrics(), Page()
    worker = Worker(settings, metrics)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        worker.start()
        yield
        worker.close()

    app = FastAPI(
        title="modelworks",
        lifespan=lifespan,
        openapi_url=None,  # no schema page: it would be a route without a key
        redirect_slashes=False,
        dependencies=[Depends(KeyCheck(settings, page.paths))],
    )
    app.state.settings, app.state.registry, app.state.worker, app.state.metrics = settings, registry, worker, metrics
    errors.install(app)
    _routes(app, registry, worker, metrics, Completions(registry, worker, settings))
    for path in sorted(page.paths):
        app.get(path)(page.serve)
    known = frozenset(getattr(route, "path", "") for route in app.routes)
    app.add_middleware(Guard, settings=settings, metrics=metrics, routes=known)
    return app


def _routes(app: FastAPI, registry: Registry, worker: Worker, metrics: Metrics, completions: Completions) -> None:
    @app.get("/healthz")
    async def healthz() -> Response:
        """Alive: this process answers and its compute thread exists."""
        return JSONResponse({"status": "ok"} if worker.alive else {"status": "stopped"}, 200 if worker.alive else 503)

    @app.get("/readyz")
    async def readyz() -> Response:
        """Ready: a request sent now would be worked on."""
        reason = worker.trouble()
        return JSONResponse({"status": reason or "ready"}, 503 if reason else 200)

    @app.get("/metrics")
    async def figures() -> Response:
        metrics.ready.set(worker.trouble() is None)
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/v1/models")
    async def models() -> Response:
        return JSONResponse({"object": "list", "data": [registry.describe(name) for name in registry.models]})

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> Response:
        return JSONResponse(registry.describe(name))

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        return await completions.chat(request)

    @app.post("/v1/completions")
    async def complete(request: Request) -> Response:
        return await completions.complete(request)


def serve(models: dict[str, Any], **settings: Any) -> None:
    """Serve `models` until told to stop; `settings` are those of `ServeSettings`.

    Raises UserError for a setting out of range or a public address without a key.
    """
    from modelworks.base.config import build

    chosen = build(ServeSettings, settings, "serve")
    run(create_app(models, chosen), chosen)


def run(app: FastAPI, settings: ServeSettings) -> None:
    """Listen until SIGTERM or Ctrl-C, then drain: not ready, running answers finish, new ones are refused (503).

    Raises UserError where the address cannot be listened on.
    """
    from .server import Draining, listen

    with listen(settings) as socket:
        host, port = socket.getsockname()[:2]
        names = ", ".join(app.state.registry.models)
        say(f"serving {names} at http://{f'[{host}]' if ':' in host else host}:{port}  (Ctrl-C stops)")
        Draining(app, settings).run([socket])
