"""A stand-in for the Hugging Face hub on this machine: its HTTP interface as far as it is called, and its faults.

Large files (`.safetensors`) answer as on the hub: /resolve/ says ETag and size and sends on to another address.
"""

from __future__ import annotations

import hashlib
import json
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

Answer = tuple[int, dict[str, str], bytes]


def git_sha1(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass
class Repository:
    """Files of one commit, and who may have them."""

    files: dict[str, bytes]
    gated: bool = False
    revisions: tuple[str, ...] = ("main",)

    @property
    def commit(self) -> str:
        return hashlib.sha1(repr(sorted((n, git_sha1(d)) for n, d in self.files.items())).encode()).hexdigest()

    def digest(self, name: str) -> str:
        data = self.files[name]
        return hashlib.sha256(data).hexdigest() if name.endswith(".safetensors") else git_sha1(data)


@dataclass
class Hub:
    """Repositories by name, planted faults by the end of a path, and a record of what was asked and sent."""

    repositories: dict[str, Repository]
    cuts: dict[str, list[int]] = field(default_factory=dict)  # bytes sent before the connection ends, a try each
    resets: bool = False  # the end is an RST, not a FIN
    flips: dict[str, int] = field(default_factory=dict)  # the byte whose lowest bit arrives wrong
    status: int = 0  # every answer
    portal: bool = False  # every answer is a page to log in, with status 200
    ranges: bool = True
    sent: list[tuple[str, str, str, int]] = field(default_factory=list)  # method, path, Range, bytes of body
    agents: set[str] = field(default_factory=set)
    authorised: set[str] = field(default_factory=set)  # hosts that were shown a token
    url: str = ""
    cdn: str = ""  # the same server under another name

    def bodies(self, end: str) -> list[tuple[str, int]]:
        """(Range, bytes sent) of each GET whose path ends so and that had a body."""
        return [
            (span, count) for method, path, span, count in self.sent if method == "GET" and path.endswith(end) and count
        ]

    def answer(self, path: str) -> Answer:
        if self.status:
            return self.status, {}, b"{}"
        if self.portal:
            return 200, {"Content-Type": "text/html"}, b"<html>Welcome to our hotel</html>"
        if path.startswith("/cdn/"):
            _, _, owner, name, file = path.split("/", 4)
            return 200, {}, self.repositories[f"{owner}/{name}"].files[file]
        parts = [unquote(part) for part in path.strip("/").split("/")]
        if parts[:2] == ["api", "models"]:
            return self._about("/".join(parts[2:4]), parts[4:])
        return self._resolve("/".join(parts[:2]), parts[3], "/".join(parts[4:]))

    def _about(self, name: str, rest: list[str]) -> Answer:
        repository = self.repositories.get(name)
        if repository is None:
            return 401, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}, b"{}"
        if rest and rest[1] not in (*repository.revisions, repository.commit):
            return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
        files = []
        for file, data in repository.files.items():
            entry = {"size": len(data), "oid": git_sha1(data)}
            if file.endswith(".safetensors"):
                sha = repository.digest(file)
                entry["lfs"] = {"size": len(data), "sha256": sha, "oid": sha, "pointerSize": 134}
            files.append((file, entry))
        if rest and rest[0] == "tree":
            body = [{"type": "file", "path": file} | entry for file, entry in files]
        else:
            siblings = [{"rfilename": file, "blobId": entry["oid"]} | entry for file, entry in files]
            body = {"id": name, "sha": repository.commit, "gated": "manual", "siblings": siblings}
        return 200, {"Content-Type": "application/json"}, json.dumps(body).encode()

    def _resolve(self, name: str, revision: str, file: str) -> Answer:
        repository = self.repositories.get(name)
        if repository is None:
            return 401, {"X-Error-Code": "RepoNotFound"}, b""
        if repository.gated:
            return 401, {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted"}, b""
        if revision not in (*repository.revisions, repository.commit):
            return 404, {"X-Error-Code": "RevisionNotFound"}, b""
        about = {"X-Repo-Commit": repository.commit}
        if file not in repository.files:
            return 404, about | {"X-Error-Code": "EntryNotFound"}, b""
        about["ETag"] = f'"{repository.digest(file)}"'
        if file.endswith(".safetensors"):
            about |= {"X-Linked-Etag": about["ETag"], "X-Linked-Size": str(len(repository.files[file]))}
            return 302, about | {"Location": f"{self.cdn}/cdn/{name}/{file}"}, b""
        return 200, about, repository.files[file]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_HEAD(self) -> None:
        self._serve()

    def do_GET(self) -> None:
        self._serve()

    def log_message(self, *_: object) -> None:
        pass

    def _serve(self) -> None:
        hub, path = self.hub, urlsplit(self.path).path
        hub.agents.add(self.headers.get("User-Agent", ""))
        if self.headers.get("Authorization"):
            hub.authorised.add(self.headers["Host"].split(":")[0])
        status, headers, body = hub.answer(path)
        span = self.headers.get("Range", "")
        if status == 200 and self.command == "GET":
            for end, place in hub.flips.items():
                if path.endswith(end):
                    body = body[:place] + bytes([body[place] ^ 1]) + body[place + 1 :]
            if span and hub.ranges:
                start, size = int(span.removeprefix("bytes=").rstrip("-")), len(body)
                status, body = 206, body[start:]
                headers = headers | {"Content-Range": f"bytes {start}-{size - 1}/{size}"}
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            hub.sent.append(("HEAD", path, span, 0))
            return
        due = [end for end in hub.cuts if path.endswith(end) and hub.cuts[end] and status < 300]
        limit = hub.cuts[due[0]].pop(0) if due else None
        body = body if limit is None else body[:limit]
        self.wfile.write(body)
        self.wfile.flush()
        hub.sent.append(("GET", path, span, len(body)))
        if limit is not None:
            self.close_connection = True
            if hub.resets:
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()


@contextmanager
def running(hub: Hub) -> Iterator[Hub]:
    """The hub answering at `hub.url` until the block ends."""
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.url, hub.cdn = f"http://127.0.0.1:{server.server_port}", f"http://localhost:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
