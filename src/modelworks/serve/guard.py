"""The gate before every route: who is asked for (Host), from where (Origin), how much (body), with which key.

It reads `scope["path"]` and raw headers only; a URL put together from them has been an attacker's tool
(CVE-2026-48710).
"""

from __future__ import annotations

import hashlib
import hmac
import time
from typing import Any

from fastapi import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import ApiError
from .metrics import Metrics
from .settings import ServeSettings

OPEN = frozenset({"/", "/healthz", "/readyz"})
"""Paths that need no key, besides the files of the page."""

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "font-src 'self'; base-uri 'none'; frame-ancestors 'none'; form-action 'none'"
)
HEADERS = [
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), microphone=(), geolocation=()"),
]


class KeyCheck:
    """The dependency of every route: a request shows a key unless its path is among the open ones."""

    def __init__(self, settings: ServeSettings, page: frozenset[str]) -> None:
        self._keys = [_hash(key.get_secret_value()) for key in settings.api_keys]
        self._open = OPEN | page

    async def __call__(self, request: Request) -> None:
        if not self._keys or request.scope["path"] in self._open:
            return
        kind, _, key = request.headers.get("authorization", "").partition(" ")
        given = _hash(key.strip())
        known = [hmac.compare_digest(given, one) for one in self._keys]
        if kind.lower() != "bearer" or not any(known):
            raise ApiError(401, "a valid key is needed: send Authorization: Bearer KEY.", "invalid_api_key")


def _hash(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


class Guard:
    """ASGI wrapper around the whole application; also counts and times what passes."""

    def __init__(self, app: ASGIApp, settings: ServeSettings, metrics: Metrics, routes: frozenset[str]) -> None:
        self.app, self.settings, self.metrics, self.routes = app, settings, metrics, routes
        self.hosts = {"localhost", "127.0.0.1", "[::1]", settings.host.lower(), *map(str.lower, settings.allowed_hosts)}
        self.any_host = not settings.local and not settings.allowed_hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # there is no WebSocket here
            await send({"type": "websocket.close", "code": 1008})
            return
        started, status = time.monotonic(), 500
        route = scope["path"] if scope["path"] in self.routes else "other"

        async def guarded(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = [*message.get("headers", []), *HEADERS]
                if not any(name == b"cache-control" for name, _ in headers):
                    headers.append((b"cache-control", b"no-store"))
                message = {**message, "headers": headers}
            await send(message)

        try:
            self._admit(scope)
            await self.app(scope, _capped(receive, self.settings.max_body), guarded)
        except ApiError as error:
            await error.response()(scope, receive, guarded)
        finally:
            self.metrics.requests.labels(route, str(status)).inc()
            self.metrics.seconds.labels(route).observe(time.monotonic() - started)

    def _admit(self, scope: Scope) -> None:
        """Raises ApiError for a foreign Host, a foreign Origin, or a body announced too large."""
        headers: dict[str, list[str]] = {}
        for name, value in scope["headers"]:
            headers.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))
        hosts = headers.get("host", [])
        if len(hosts) != 1 or not (self.any_host or _name(hosts[0]) in self.hosts):
            raise ApiError(400, "this server does not answer to that host name; see allowed_hosts.", "invalid_host")
        for origin in headers.get("origin", []):
            scheme, _, place = origin.partition("://")
            if scheme not in ("http", "https") or place.lower() != hosts[0].lower():
                raise ApiError(403, "requests from other sites are refused.", "foreign_origin")
        if headers.get("sec-fetch-site", ["none"])[0] not in ("none", "same-origin") and scope["method"] != "GET":
            raise ApiError(403, "requests from other sites are refused.", "foreign_origin")
        length = headers.get("content-length", ["0"])[0]
        if not length.isdigit() or int(length[:19]) > self.settings.max_body:
            raise _too_large(self.settings.max_body)


def _name(host: str) -> str:
    """The name in a Host header, without its port."""
    name, colon, port = host.lower().rpartition(":")
    return name if colon and port.isdigit() else host.lower()


def _too_large(limit: int) -> ApiError:
    return ApiError(413, f"the body is larger than {limit} bytes.", "body_too_large")


def _capped(receive: Receive, limit: int) -> Receive:
    """`receive` that refuses a body beyond `limit` bytes, announced or not."""
    seen = 0

    async def capped() -> Any:
        nonlocal seen
        message = await receive()
        if message["type"] == "http.request":
            seen += len(message.get("body", b""))
            if seen > limit:
                raise _too_large(limit)
        return message

    return capped
