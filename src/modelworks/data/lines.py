"""Compressed JSON lines (`.jsonl.zst`): how corpora, conversations and preferences lie on disk, read as a stream."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from modelworks.base import files
from modelworks.base.errors import DamagedError, UserError


def zstd() -> ModuleType:
    """The zstd module: Python's own from 3.14 on, else backports.zstd. Raises UserError when there is neither."""
    try:
        from compression import zstd as module  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        try:
            from backports import zstd as module
        except ImportError:
            raise UserError(
                "Reading .zst files needs backports.zstd; install it with pip install 'modelworks[data]'."
            ) from None
    return module


def mend(text: str) -> str:
    """`text` with surrogate pairs joined and lone surrogates replaced by U+FFFD, so that it can be written as UTF-8."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


class Writer:
    """Append records to one new `.jsonl.zst` file; `close` makes it complete (a kill before leaves a damaged file).

    Use it inside a folder that appears only when finished (`files.new_directory`).
    """

    def __init__(self, path: Path, level: int = 3) -> None:
        module = zstd()
        options = {
            module.CompressionParameter.compression_level: level,
            module.CompressionParameter.checksum_flag: 1,  # so that a flipped bit is found when read
        }
        self.path, self.records, self.bytes = path, 0, 0
        with files.disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = module.open(path, "wb", options=options)

    def add(self, record: Any) -> None:
        """Write one JSON-like value as one line. Raises FailureError when the disk is full."""
        data = mend(json.dumps(record, ensure_ascii=False, separators=(",", ":"))).encode() + b"\n"
        with files.disk_errors(self.path):
            self._file.write(data)
        self.records += 1
        self.bytes += len(data)

    def close(self) -> None:
        with files.disk_errors(self.path):
            if not self.records:
                self._file.write(b"")  # an empty frame: a file without a byte would be read as cut short
            self._file.close()

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def write(path: Path, records: Iterable[Any]) -> int:
    """Write all records to a new file; returns how many."""
    with Writer(path) as writer:
        for record in records:
            writer.add(record)
    return writer.records


def read(path: Path) -> Iterator[Any]:
    """Yield the records of a `.jsonl.zst` file in order, holding one at a time.

    Raises UserError when the file is missing, DamagedError naming the file (and line) when it is cut short,
    does not decompress or holds a line that is not JSON.
    """
    module = zstd()
    number = 0
    try:
        with module.open(path, "rb") as file:
            for line in file:
                number += 1
                yield json.loads(line)
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file; check the path.") from None
    except (EOFError, module.ZstdError) as error:
        raise DamagedError(f"{path}: is damaged after line {number} ({error}); make it again.") from None
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{path}:{number}: not valid JSON ({error}); make the file again.") from None
