"""files: a folder, a file or a glob of .txt .md .html .rst .pdf .json .jsonl .csv, also in .gz .zst .zip .tar archives.

Whatever cannot be read (binary junk, a truncated archive, an unknown kind) is counted with its reason; the rest
goes on. HTML, Markdown and rst are passed on as they are: the step `extract` makes text of them.
"""

from __future__ import annotations

import io
import logging
import os
import re
import stat
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import IO, Any

from modelworks.base.errors import UserError

from ..corpus import Document, Rejected
from ..decode import decode, language
from . import _archives, _records
from ._records import LONGEST

_FORMATS = {
    ".txt": "text",
    ".text": "text",
    ".md": "markdown",
    ".markdown": "markdown",
    ".rst": "rst",
    ".html": "html",
    ".htm": "html",
    ".xhtml": "html",
    ".pdf": "pdf",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
}
_TITLES = {
    "markdown": re.compile(r"^\s{0,3}#\s+(.+?)\s*#*\s*$|^(.+)\n=+\s*$", re.M),
    "rst": re.compile(r"^(?:[=*#~-]{3,}\n)?\s*(\S.*)\n[=*#~-]{3,}\s*$", re.M),
    "html": re.compile(r"<title[^>]*>\s*([^<]{1,300}?)\s*</title", re.I),
}
_PAGES = 5000  # of one PDF


def documents(spec: str) -> Iterator[Document | Rejected]:
    """Yield the documents of `spec`: a folder, a file or a glob; `#FIELD` after it names the text field of records.

    `meta`: source, path (relative to the folder), title, language, format, encoding. Raises UserError when nothing
    is there.
    """
    base, paths, field = _find(spec)
    for path in paths:
        name = path.relative_to(base).as_posix()
        if isinstance(trouble := _refused(path, name, base), Rejected):
            yield trouble
            continue
        yield from _file(path, name, field)


def _find(spec: str) -> tuple[Path, list[Path], str | None]:
    """The folder that names are relative to, all paths in order, and the text field of records."""
    place, field = spec, None
    if "#" in spec and not Path(spec).expanduser().exists():
        place, _, field = spec.rpartition("#")
    path = Path(place).expanduser()
    if not place.strip():
        raise UserError("files: names no path; write files:FOLDER.")
    if path.is_dir():
        base = path.resolve()
        found = list(_walk(base))
        if not found:
            raise UserError(f"{path}: the folder is empty; put documents into it.")
        return base, found, field
    if path.exists():
        path = path.resolve()
        return path.parent, [path], field
    if any(mark in place for mark in "*?["):
        parts = path.parts
        fixed = next(i for i, part in enumerate(parts) if any(mark in part for mark in "*?["))
        base = Path(*parts[:fixed]).resolve() if fixed else Path.cwd()
        found = sorted(p for p in base.glob(str(Path(*parts[fixed:]))) if not p.is_dir())
        if not found:
            raise UserError(f"{place}: nothing matches this pattern; check the path.")
        return base, found, field
    raise UserError(f"{place}: there is no such file or folder; check the path.")


def _walk(folder: Path) -> Iterator[Path]:
    """All files below, sorted; links to folders and hidden folders are given as they are, not entered."""
    for entry in sorted(os.scandir(folder), key=lambda e: e.name):
        path = Path(entry.path)
        if entry.is_dir(follow_symlinks=False) and not entry.name.startswith("."):
            try:
                yield from _walk(path)
            except PermissionError:
                yield path
        else:
            yield path


def _refused(path: Path, name: str, base: Path) -> Rejected | None:
    """Why a path is not even opened, if so."""
    try:
        facts = path.lstat()
        if stat.S_ISLNK(facts.st_mode):
            target = path.resolve()
            inside = target.is_relative_to(base)
            return Rejected(name, "link (its target is read itself)" if inside else "link out of the folder", 0)
    except (OSError, RuntimeError):
        return Rejected(name, "cannot be read", 0)
    if any(part.startswith(".") for part in Path(name).parts):
        return Rejected(name, "hidden", facts.st_size if stat.S_ISREG(facts.st_mode) else 0)
    if stat.S_ISDIR(facts.st_mode):
        return Rejected(name, "cannot be read", 0)
    if not stat.S_ISREG(facts.st_mode):
        return Rejected(name, "not a regular file", 0)
    if facts.st_size == 0:
        return Rejected(name, "empty", 0)
    if not _archives.is_archive(name) and _format(name) is None:
        suffix = Path(_archives.plain_name(name)).suffix.lower()
        return Rejected(name, f"kind not read ({suffix or 'no suffix'})", facts.st_size)
    return None


def _format(name: str) -> str | None:
    return _FORMATS.get(os.path.splitext(_archives.plain_name(name).lower())[1])


def _file(path: Path, name: str, field: str | None) -> Iterator[Document | Rejected]:
    """Everything in one file or archive; what breaks on the way is counted once, with what came before it kept."""
    size = path.stat().st_size
    try:
        for item in _archives.streams(path, name):
            if isinstance(item, Rejected):
                yield item
                continue
            inner, stream = item
            try:
                yield from _stream(stream, inner, field)
            except _archives.errors() as error:  # the next member may be sound
                yield Rejected(inner, _archives.reason(error), size if inner == _archives.plain_name(name) else 0)
    except UserError as error:  # a missing optional package
        yield Rejected(name, str(error), size)
    except _archives.errors() as error:
        yield Rejected(name, _archives.reason(error), size)


def _stream(stream: IO[bytes], name: str, field: str | None) -> Iterator[Document | Rejected]:
    kind = _format(name)
    if kind is None or any(
        part.startswith(".") for part in name.replace("!", "/").split("/") if part not in ("", ".", "..")
    ):
        suffix = os.path.splitext(name)[1].lower()
        yield Rejected(name, f"kind not read ({suffix or 'no suffix'})" if kind is None else "hidden", 0)
        return
    if kind == "jsonl":
        for record in _records.json_lines(stream, field):
            yield _from_record(record, name)
        return
    data = stream.read(LONGEST + 1)
    if len(data) > LONGEST:
        yield Rejected(name, f"longer than {LONGEST >> 20} MB (cut it, or use .jsonl)", len(data))
        return
    if kind in ("json", "csv", "tsv"):
        try:
            rows = _records.json_file(data, field) if kind == "json" else _records.csv_rows(data, kind == "tsv", field)
            for record in rows:
                yield _from_record(record, name)
        except (ValueError, RecursionError):
            yield Rejected(name, f"not valid {'JSON' if kind == 'json' else 'CSV'}", len(data))
    elif kind == "pdf":
        yield _pdf(data, name)
    else:
        yield _text(data, name, kind)


def _from_record(record: _records.Record | Rejected, name: str) -> Document | Rejected:
    if isinstance(record, Rejected):
        return Rejected(name + record.id, record.reason, record.bytes)
    text, where, facts = record
    return _document(text, name, "text", where=where, **facts)


def _text(data: bytes, name: str, kind: str) -> Document | Rejected:
    decoded = decode(data, html=kind == "html")
    if decoded is None:
        return Rejected(name, "not text (binary, or an unknown encoding)", len(data))
    text, encoding = decoded
    if not text.strip():
        return Rejected(name, "empty", len(data))
    found = _TITLES[kind].search(text[:20000]) if kind in _TITLES else None
    title = next((part for part in found.groups() if part), "") if found else ""
    return _document(text, name, kind, encoding=encoding, **({"title": unescape(title.strip())} if title else {}))


def _document(text: str, name: str, kind: str, where: str = "", **facts: Any) -> Document:
    meta = {"source": "files", "path": name, "title": Path(name).stem + where, "format": kind}
    meta |= {"language": language(text, html=kind == "html"), **facts}
    return Document(f"files:{name}{where}", text, meta)


def _pdf(data: bytes, name: str) -> Document | Rejected:
    """The text of a PDF's pages; pictures of text (scans) have none."""
    try:
        import pypdf
    except ImportError:
        return Rejected(name, "needs pypdf (pip install 'modelworks[data]')", len(data))
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)
    try:
        reader = pypdf.PdfReader(io.BytesIO(data))
        if reader.is_encrypted and not reader.decrypt(""):
            return Rejected(name, "encrypted PDF", len(data))
        pages = [page.extract_text() or "" for page in reader.pages[:_PAGES]]
        title = str((reader.metadata or {}).get("/Title") or "").strip()
    except Exception:  # pypdf raises anything on a broken file; whatever it is, the file is the cause
        return Rejected(name, "damaged PDF", len(data))
    text = "\n\n".join(page.strip() for page in pages if page.strip())
    if not text:
        return Rejected(name, "PDF without text (a scan?)", len(data))
    return _document(text, name, "pdf", **({"title": title[:300]} if title else {}))
