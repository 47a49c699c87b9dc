"""The one storage layer: atomic, hashed, fsynced files and directories, and how damage is found again.

    write beside it -> fsync -> rename over it -> fsync the folder

A directory appears under its final name only when every file in it is on disk and listed, with size and
SHA-256, in its `manifest.json`. Whoever opens it asks `verify` first. A kill at any instant leaves the old
state or the new one, never a mixture; leftovers carry a `.partial` name and are swept by the next writer.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import DamagedError, FailureError, UserError

MANIFEST = "manifest.json"
PARTIAL = ".partial"


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces: the same value gives the same text everywhere."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)


def digest(value: Any) -> str:
    """SHA-256 (hex) of a JSON-like value."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def sha256(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes, read in blocks."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals into one sentence that names the path and the remedy."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            free = shutil.disk_usage(_existing(path)).free
            raise FailureError(
                f"{path}: the disk is full ({free / 1e6:.0f} MB free); what was there before is untouched, "
                "make room and run the same command again."
            ) from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            raise FailureError(
                f"{path}: may not be written ({error.strerror}); choose another place with --out."
            ) from error
        raise


def _existing(path: Path) -> Path:
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def fsync(path: Path) -> None:
    """Flush a file or a folder to the disk itself."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_directory(path: Path) -> None:
    """Make a folder and those above it that are missing, each known to the disk before anything is put into it."""
    missing = [folder for folder in (path, *path.parents) if not folder.is_dir()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in reversed(missing):
        fsync(folder.parent)


def write_bytes(path: Path, data: bytes) -> None:
    """Replace `path` by `data`, atomically and durably. Raises FailureError when the disk is full."""
    with disk_errors(path):
        make_directory(path.parent)
        beside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}{PARTIAL}")
        try:
            with open(beside, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, path)
        finally:
            beside.unlink(missing_ok=True)
        fsync(path.parent)


def write_text(path: Path, text: str) -> None:
    """`write_bytes` for UTF-8 text."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """`write_bytes` for JSON, indented for people; half a surrogate (a file name that is no UTF-8) stands escaped."""
    text = json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n"
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def read_json(path: Path) -> Any:
    """Read JSON. Raises UserError when the file is missing, DamagedError when it is not JSON."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file; check the path.") from None
    except (ValueError, UnicodeDecodeError) as error:
        raise DamagedError(f"{path}: not valid JSON ({error}); it was cut short or edited.") from None


@contextlib.contextmanager
def new_directory(final: Path, keep: Path | None = None, known: dict[str, str] | None = None) -> Iterator[Path]:
    """Yield a folder to fill; when the block ends well it is hashed, fsynced and renamed to `final`.

    `keep` names a folder that may already hold part of the work (a training run that goes on): it is used
    as it is and survives a failure. Otherwise a fresh `.partial` folder is made and removed on failure.
    `known`: as for `seal`; fill it inside the block. An older `final` is replaced whole. Raises FailureError when
    the disk is full.
    """
    with disk_errors(final):
        make_directory(final.parent)
        work = keep or final.with_name(f".{final.name}.{uuid.uuid4().hex[:8]}{PARTIAL}")
        work.mkdir(parents=True, exist_ok=True)
        try:
            yield work
            seal(work, known)
            _swap(work, final)
        except BaseException:
            if keep is None:
                shutil.rmtree(work, ignore_errors=True)
            raise


def seal(folder: Path, known: dict[str, str] | None = None) -> dict[str, Any]:
    """Write `manifest.json` (size and SHA-256 of every file below) and fsync everything. Returns the manifest.

    `known` holds the hashes, by name, of files whose writer took them from what it wrote; the others are read again.
    """
    known, files = known or {}, {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p != folder / MANIFEST):
        if path.name.endswith(PARTIAL):
            path.unlink()
            continue
        fsync(path)
        name = path.relative_to(folder).as_posix()
        files[name] = {"bytes": path.stat().st_size, "sha256": known.get(name) or sha256(path)}
    manifest = {"format": 1, "files": files, "digest": digest(files)}
    write_json(folder / MANIFEST, manifest)
    for path in sorted(p for p in folder.rglob("*") if p.is_dir()):
        fsync(path)
    fsync(folder)
    return manifest


def _swap(work: Path, final: Path) -> None:
    """Rename `work` to `final`; an older `final` steps aside first and is removed last."""
    aside = final.with_name(f".{final.name}.{uuid.uuid4().hex[:8]}.old{PARTIAL}")
    if final.exists():
        os.rename(final, aside)
    os.rename(work, final)
    fsync(final.parent)
    shutil.rmtree(aside, ignore_errors=True)


def is_complete(folder: Path) -> bool:
    """True when the folder was finished by `new_directory` (cheap: its contents are not read)."""
    return (folder / MANIFEST).is_file()


def verify(folder: Path, only: str | None = None) -> dict[str, Any]:
    """Check every listed file (or the one named `only`) against the manifest; returns the manifest.

    Raises DamagedError naming the first file that is missing, cut short or changed.
    """
    manifest = read_json(folder / MANIFEST) if is_complete(folder) else None
    facts: dict[str, Any] = (isinstance(manifest, dict) and manifest.get("files")) or {}
    if manifest != {"format": 1, "files": facts, "digest": digest(facts)}:
        raise DamagedError(f"{folder}: unfinished or its manifest is damaged; run the command that made it again.")
    for name, fact in facts.items():
        if only is not None and name != only:
            continue
        path = folder / name
        if not path.is_file():
            raise DamagedError(f"{path}: is missing; run the command that made {folder.name} again.")
        if path.stat().st_size != fact["bytes"] or sha256(path) != fact["sha256"]:
            raise DamagedError(f"{path}: is damaged (its SHA-256 differs from the manifest); make it again.")
    return manifest


def sweep(folder: Path) -> None:
    """Remove the leftovers that killed writers left in `folder` (names ending in `.partial`).

    Call it only while holding the folder's lock. If a kill fell between the two renames of a swap, the
    finished newcomer is gone with its writer but the old state still stands aside: it is put back.
    """
    if not folder.is_dir():
        return
    for path in sorted(folder.iterdir()):
        if not path.name.endswith(PARTIAL) or not path.name.startswith("."):
            continue
        name = path.name[1:].rsplit(".", 3)[0] if path.name.endswith(f".old{PARTIAL}") else ""
        if name and not (folder / name).exists():
            os.rename(path, folder / name)
        elif path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def point(link: Path, target: Path) -> None:
    """Make `link` a relative symbolic link to `target`, replacing an older link atomically."""
    if link.exists() and not link.is_symlink():
        raise UserError(f"{link}: is in the way (not a link); move it and run again.")
    with disk_errors(link):
        beside = link.with_name(f".{link.name}.{uuid.uuid4().hex[:8]}{PARTIAL}")
        os.symlink(os.path.relpath(target, link.parent), beside)
        os.replace(beside, link)
        fsync(link.parent)


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Hold a folder for one process; the lock goes with the process, so a kill frees it.

    Raises UserError when another process holds it.
    """
    import fcntl

    with disk_errors(folder):
        make_directory(folder)
        handle = open(folder / ".lock", "a")  # noqa: SIM115 - held until the block ends
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(
                f"{folder}: another modelworks process is working here; wait for it or use --out."
            ) from None
        yield
    finally:
        handle.close()
