"""Files and archive members as capped streams: what cannot be read or grows too much becomes a Rejected."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import os
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from modelworks.base.errors import UserError

from ..corpus import Rejected
from ..lines import zstd

EXPANSION = 200  # compressed text grows 3 to 50 fold; what grows more is not text
SLACK = 64 * 2**20  # a small archive may grow to this size whatever its ratio
MEMBERS = 200_000

DAMAGED = "damaged or truncated"
TOO_MUCH = "expands too much (a zip bomb?)"
_SINGLE = (".gz", ".zst", ".bz2", ".xz")
_TARS = (".tar", ".tgz", ".tbz2", ".txz", *(f".tar{suffix}" for suffix in _SINGLE))
_SHORT = {".tgz": ".gz", ".tbz2": ".bz2", ".txz": ".xz"}


class TooMuchError(Exception):
    """More bytes came out of a compressed file than text can explain."""


class _Capped(io.RawIOBase):
    """A stream that refuses to give more than `limit` bytes."""

    def __init__(self, source: IO[bytes], limit: int) -> None:
        self._source, self._left = source, limit

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        data = self._source.read(len(buffer))
        self._left -= len(data)
        if self._left < 0:
            raise TooMuchError
        buffer[: len(data)] = data
        return len(data)


class _Member(tarfile.TarInfo):
    """A member's header; where the archive ends without its end mark, it was cut short."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> tarfile.TarInfo:
        try:
            return super().fromtarfile(archive)
        except (tarfile.EmptyHeaderError, tarfile.TruncatedHeaderError) as error:  # type: ignore[attr-defined]
            raise tarfile.ReadError("the end is missing") from error


def errors() -> tuple[type[BaseException], ...]:
    """Everything that a broken compressed file may raise."""
    broken: list[type[BaseException]] = [TooMuchError, EOFError, zlib.error, lzma.LZMAError]
    broken += [
        tarfile.TarError,
        zipfile.BadZipFile,
        OSError,
        ValueError,
        RuntimeError,
        NotImplementedError,
        OverflowError,
        IndexError,
        KeyError,
    ]
    with contextlib.suppress(UserError):  # no zstd here: then it cannot raise either
        broken.append(zstd().ZstdError)
    return tuple(broken)


def reason(error: BaseException) -> str:
    """Why a file is rejected when reading it raised `error`."""
    if isinstance(error, TooMuchError):
        return TOO_MUCH
    return "cannot be read" if isinstance(error, PermissionError) else DAMAGED


def is_archive(name: str) -> bool:
    """True for the names of archives with members."""
    return name.lower().endswith((*_TARS, ".zip"))


def plain_name(name: str) -> str:
    """'a.jsonl.gz' -> 'a.jsonl'."""
    lower = name.lower()
    return name[: lower.rindex(".")] if lower.endswith(_SINGLE) and not is_archive(name) else name


def _decompressed(raw: IO[bytes], name: str) -> IO[bytes]:
    suffix = os.path.splitext(name.lower())[1]
    suffix = _SHORT.get(suffix, suffix)
    if suffix == ".gz":
        return gzip.GzipFile(fileobj=raw)  # type: ignore[return-value]
    if suffix == ".bz2":
        return bz2.BZ2File(raw)
    if suffix == ".xz":
        return lzma.LZMAFile(raw)
    if suffix == ".zst":
        return zstd().open(raw, "rb")
    return raw


def streams(path: Path, name: str) -> Iterator[tuple[str, IO[bytes]] | Rejected]:
    """Yield (name, binary stream) of a file, or of each member of an archive, with compression taken off.

    A stream is valid until the next one is asked for; reading it may raise one of `errors()` or TooMuchError.
    """
    size = path.stat().st_size
    limit = size * EXPANSION + SLACK
    if name.lower().endswith(".zip"):
        yield from _zip(path, name, limit)
        return
    with open(path, "rb") as raw:
        stream = _decompressed(raw, name)
        capped = stream if stream is raw else io.BufferedReader(_Capped(stream, limit), 1 << 16)
        if is_archive(name):
            yield from _tar(capped, name)
        else:
            yield plain_name(name), capped


def _tar(stream: IO[bytes], name: str) -> Iterator[tuple[str, IO[bytes]] | Rejected]:
    with tarfile.open(fileobj=stream, mode="r|", tarinfo=_Member) as archive:
        for number, member in enumerate(archive):
            inner = f"{name}!{member.name}"
            if number >= MEMBERS:
                yield Rejected(name, f"more than {MEMBERS} members", 0)
                return
            if member.isdir():
                continue
            if not member.isreg():
                yield Rejected(inner, "not a regular file", 0)
                continue
            source = archive.extractfile(member)
            if source is not None:
                yield from _member(source, inner, member.size)


def _zip(path: Path, name: str, limit: int) -> Iterator[tuple[str, IO[bytes]] | Rejected]:
    with zipfile.ZipFile(path) as archive:
        if sum(member.file_size for member in archive.infolist()) > limit:
            yield Rejected(name, TOO_MUCH, path.stat().st_size)
            return
        for number, member in enumerate(archive.infolist()):
            inner = f"{name}!{member.filename}"
            if number >= MEMBERS:
                yield Rejected(name, f"more than {MEMBERS} members", 0)
                return
            if member.is_dir():
                continue
            if member.flag_bits & 1:
                yield Rejected(inner, "encrypted", member.file_size)
                continue
            try:
                source = archive.open(member)
            except errors():
                yield Rejected(inner, DAMAGED, member.compress_size)
                continue
            with source:
                yield from _member(io.BufferedReader(_Capped(source, limit)), inner, member.compress_size)


def _member(source: IO[bytes], inner: str, size: int) -> Iterator[tuple[str, IO[bytes]] | Rejected]:
    if is_archive(inner):
        yield Rejected(inner, "archive inside an archive", size)
        return
    stream = _decompressed(source, inner)
    limit = size * EXPANSION + SLACK
    yield plain_name(inner), stream if stream is source else io.BufferedReader(_Capped(stream, limit))
