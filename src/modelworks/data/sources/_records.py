"""Records of .jsonl, .json and .csv: one document each, from its text field or from all fields as 'name: value'."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from typing import IO, Any

from ..corpus import Rejected
from ..decode import encoding

LONGEST = 64 * 2**20  # bytes of one document
TEXT_FIELDS = ("text", "content", "body", "article", "passage", "document", "context", "review", "sentence")
TITLE_FIELDS = ("title", "name", "headline", "subject", "question")

Record = tuple[str, str, dict[str, Any]]  # text, where ('#12'), meta


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        return "\n".join(value).strip()
    if value is None or isinstance(value, dict | list):
        return json.dumps(value, ensure_ascii=False) if value else ""
    return str(value)


def as_records(value: Any, where: str, field: str | None, depth: int = 0) -> Iterator[Record | Rejected]:
    """The documents in one record: a string, or a mapping with a text field (`field` names it), else all its fields.

    A mapping without text that holds a list of mappings with text (SQuAD's data, paragraphs) stands for those.
    """
    if isinstance(value, str):
        yield (value, where, {}) if value.strip() else Rejected(where, "empty", 0)
        return
    if not isinstance(value, dict):
        yield Rejected(where, "a record that is neither a mapping nor a string", 0)
        return
    name = _text_field(value, field)
    inner = _inner(value, field) if name is None and depth < 4 else None
    if inner is not None:
        for number, item in enumerate(inner, start=1):
            yield from as_records(item, f"{where}.{number}" if where else f"#{number}", field, depth + 1)
        return
    fields = {str(key): _text(item) for key, item in value.items()}
    if field is not None and name is None:
        yield Rejected(where, f"no field '{field}'", sum(len(v.encode("utf-8", "replace")) for v in fields.values()))
        return
    text = fields[name] if name else "\n".join(f"{key}: {item}" for key, item in fields.items() if item)
    if not text.strip():
        yield Rejected(where, "empty", 0)
        return
    title = next((fields[key] for key in TITLE_FIELDS if fields.get(key) and key != name), "")
    yield text, where, {"title": title[:300]} if title else {}


def _text_field(value: dict[Any, Any], field: str | None) -> str | None:
    if field is not None:
        return field if field in value else None
    there = [key for key in TEXT_FIELDS if isinstance(value.get(key), str)]
    return next((key for key in there if value[key].strip()), there[0] if there else None)


def _inner(value: dict[Any, Any], field: str | None, depth: int = 0) -> list[dict[Any, Any]] | None:
    """The first list in a mapping whose members (or members' members) have text."""
    for item in value.values():
        first = item[0] if isinstance(item, list) and item else None
        if isinstance(first, dict) and (_text_field(first, field) or (depth < 2 and _inner(first, field, depth + 1))):
            return item
    return None


def _long_lines(stream: IO[bytes]) -> Iterator[bytes | int]:
    """Lines of at most LONGEST bytes; of a longer one only its length, read without holding it."""
    while line := stream.readline(LONGEST + 1):
        if len(line) <= LONGEST:
            yield line
            continue
        length = len(line)
        while not line.endswith(b"\n") and (line := stream.readline(1 << 20)):
            length += len(line)
        yield length


def json_lines(stream: IO[bytes], field: str | None) -> Iterator[Record | Rejected]:
    """One record a line; a line that is no JSON, too long or not UTF-8 is rejected and the rest goes on."""
    for number, line in enumerate(_long_lines(stream), start=1):
        where = f"#{number}"
        if isinstance(line, int):
            yield Rejected(where, f"line longer than {LONGEST >> 20} MB", line)
            continue
        if not line.strip():
            continue
        try:
            value = json.loads(line.decode("utf-8-sig"))
        except UnicodeDecodeError:
            yield Rejected(where, "not UTF-8", len(line))
            continue
        except (ValueError, RecursionError):
            yield Rejected(where, "not valid JSON", len(line))
            continue
        yield from as_records(value, where, field)


def json_file(data: bytes, field: str | None) -> Iterator[Record | Rejected]:
    """A JSON array of records, or one record. Raises ValueError or RecursionError when it is not JSON."""
    value = json.loads(data.decode("utf-8-sig"))
    if isinstance(value, list):
        for number, item in enumerate(value, start=1):
            yield from as_records(item, f"#{number}", field)
    else:
        yield from as_records(value, "", field)


def csv_rows(data: bytes, tabs: bool, field: str | None) -> Iterator[Record | Rejected]:
    """One record a row, named by the first row; the delimiter is the one that the first row uses most.

    Raises ValueError when the bytes are not text.
    """
    name = encoding(data)
    if name is None:
        raise ValueError("not text")
    text = io.StringIO(data.decode(name), newline="")
    first = text.readline()
    text.seek(0)
    delimiter = "\t" if tabs else max(",;\t|", key=lambda mark: (first.count(mark), mark == ","))
    csv.field_size_limit(LONGEST)
    rows = csv.reader(text, delimiter=delimiter)
    header: list[str] | None = None
    number = 0
    while True:
        number += 1
        where = f"#{number}"
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error:
            yield Rejected(where, "not valid CSV", 0)
            continue
        if header is None:
            header = [title.strip() or f"column {place}" for place, title in enumerate(row, start=1)]
        elif any(cell.strip() for cell in row):
            cells = dict(zip(header, row)) | {f"column {i}": row[i] for i in range(len(header), len(row))}
            yield from as_records(cells, where, field)
