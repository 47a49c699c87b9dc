"""The files of the chat page, read once at the start: what is not among them cannot be asked for."""

from __future__ import annotations

import hashlib
import mimetypes
from pathlib import Path

from fastapi import Request
from fastapi.responses import Response

STATIC = Path(__file__).parent / "studio" / "static"
KINDS = {
    ".js": "text/javascript",
    ".css": "text/css",
    ".html": "text/html",
    ".svg": "image/svg+xml",
    ".woff2": "font/woff2",
}
ABSENT = b"modelworks is running. The chat page is not built; the API is at /v1.\n"


class Page:
    """path -> (content, type, digest)."""

    def __init__(self, folder: Path = STATIC) -> None:
        self.files: dict[str, tuple[bytes, str, str]] = {}
        for path in sorted(folder.rglob("*")) if folder.is_dir() else []:
            if path.is_file() and not path.is_symlink():
                self._add("/" + path.relative_to(folder).as_posix(), path.read_bytes(), path.suffix)
        index = self.files.get("/index.html")
        self.files["/"] = index or (ABSENT, "text/plain; charset=utf-8", hashlib.sha256(ABSENT).hexdigest())

    def _add(self, name: str, content: bytes, suffix: str) -> None:
        kind = KINDS.get(suffix) or mimetypes.guess_type(name)[0] or "application/octet-stream"
        if kind.startswith("text/"):
            kind += "; charset=utf-8"
        self.files[name] = (content, kind, hashlib.sha256(content).hexdigest())

    @property
    def paths(self) -> frozenset[str]:
        """All that is served."""
        return frozenset(self.files)

    async def serve(self, request: Request) -> Response:
        """The file at the request's path, or 304 where the browser has it."""
        content, kind, digest = self.files[request.scope["path"]]
        hashed = "/assets/" in request.scope["path"]  # a name with its content's hash in it never changes
        headers = {
            "etag": f'"{digest[:32]}"',
            "cache-control": "public, max-age=31536000, immutable" if hashed else "no-cache",
        }
        if request.headers.get("if-none-match") == headers["etag"]:
            return Response(status_code=304, headers=headers)
        return Response(content, media_type=kind, headers=headers)
