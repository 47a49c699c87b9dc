"""One file from the hub: a broken download goes on where it stopped, and nothing enters the cache unchecked."""

from __future__ import annotations

import hashlib
import os
import time
from contextlib import suppress
from pathlib import Path

import httpx2
from huggingface_hub.utils import WeakFileLock, build_hf_headers, get_session, hf_raise_for_status

from ..base import files, log
from ..base.errors import DamagedError, FailureError

PART = ".modelworks.part"
"""What a file is called while only its beginning is here."""
TRIES = 5
"""Times that a download may stop without a new byte before it is given up."""
WAIT = 1.0
"""Seconds before the connection is tried again."""
BLOCK = 1 << 20
BUSY = (408, 429, 500, 502, 503, 504)
"""Answers that say 'not now'."""


def fetch(url: str, target: Path, size: int, digest: str, label: str, lock: Path) -> None:
    """Make `target` the file behind `url`: `size` bytes whose `digest` is the hub's.

    What has arrived stays beside `target` when the connection breaks, when the server is busy or when this
    process is killed; the next call asks only for the rest. `lock` keeps other processes from the same file,
    `label` names it in messages. Raises FailureError when the connection does not come back (or the disk is
    full), DamagedError when what arrived has another digest, HfHubHTTPError for a refusal.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + PART)
    with files.disk_errors(target), WeakFileLock(lock):
        if target.exists():  # another process had the lock and brought it
            return
        if _size(part) > size:
            part.unlink()
        _complete(url, part, size, label)
        if not same(part, digest):
            part.unlink()
            raise DamagedError(
                f"{label}: what arrived is damaged (its checksum is not the hub's {digest[:12]}...) and was "
                "thrown away; try again."
            )
        files.fsync(part)
        os.replace(part, target)


def same(path: Path, digest: str) -> bool:
    """True when the file's digest is `digest`: SHA-256 (64 letters; large files) or git's SHA-1 of a blob (40)."""
    if len(digest) == 64:
        return files.sha256(path) == digest
    found = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            found.update(block)
    return found.hexdigest() == digest


def _complete(url: str, part: Path, size: int, label: str) -> None:
    tries = TRIES
    with log.progress(label, total=size, unit="B", done=_size(part)) as progress:
        while (have := _size(part)) < size:
            why = "the connection was closed"
            try:
                why = _append(url, part, have, progress) or why
            except httpx2.TransportError as error:
                why = str(error) or type(error).__name__
            now = _size(part)
            tries = TRIES if now > have else tries - 1
            if tries == 0:
                raise FailureError(
                    f"{label}: the download stopped at {now:,} of {size:,} bytes ({why}); the same command goes on "
                    "from there."
                )
            if now < size:
                time.sleep(WAIT)
        if have > size:
            part.unlink()
            raise DamagedError(f"{label}: more than its {size:,} bytes arrived, so it was thrown away; try again.")


def _append(url: str, part: Path, have: int, progress: log.Progress) -> str:
    """Ask for what follows the first `have` bytes and write it behind them. Returns why nothing came, or ''."""
    headers = build_hf_headers() | {"Accept-Encoding": "identity"}  # packed bytes could not be counted
    if have:
        headers["Range"] = f"bytes={have}-"
    with get_session().stream("GET", url, headers=headers, follow_redirects=True, timeout=30) as response:
        if response.status_code in BUSY:
            return f"the hub answers {response.status_code}"
        hf_raise_for_status(response)
        begins = response.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        goes_on = response.status_code == 206 and begins
        with open(part, "ab" if goes_on else "wb") as file:  # a server that knows no ranges starts again
            for block in response.iter_bytes():  # as they come: a block of our size would be lost with the connection
                file.write(block)
                progress.advance(len(block))
    return ""


def _size(part: Path) -> int:
    with suppress(FileNotFoundError):
        return part.stat().st_size
    return 0
