"""passages: cut documents into passages of one thought each, findable and citable, in passages.sqlite."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

from ...base.config import Settings
from .. import corpus, retrieve
from ..facts import BASES, sentences
from ..retrieve import Passage

FILE = "passages.sqlite"


class Config(Settings):
    characters: int = 600
    """Length of a passage, at most; sentences are never cut unless one alone is longer."""


def build(source: Path, out: Path, config: Config, seed: int) -> dict[str, int]:
    """Read the corpus in `source`, write `out/passages.sqlite`. Returns how many documents and passages."""
    counts = {"documents": 0}

    def passages() -> Iterator[Passage]:
        for document in corpus.read(source):
            counts["documents"] += 1
            yield from cut(document, config.characters)

    counts["passages"] = retrieve.write(out / FILE, passages())
    return counts


def cut(document: corpus.Document, limit: int) -> Iterator[Passage]:
    """The passages of one document. One about code starts with `kind name(arguments)` in its first passage."""
    meta = document.meta
    code = str(meta["symbol"]) if meta.get("symbol") and meta.get("kind") != "topic" else ""
    title = str(code or meta.get("title") or meta.get("path") or document.id)
    body = document.text.strip()
    first = ""
    if code:
        signature = str(meta.get("signature") or "")
        arguments = re.sub(r"\s+", " ", signature[signature.find("(") :]) if "(" in signature else ""
        first = f"{meta['kind']} {code}{arguments}"
        if bases := [base for base in meta.get("bases") or [] if base != "object"]:
            first += f"\n{BASES}{', '.join(bases)}."
        body = _without_heading(body, signature, code)
    for number, piece in enumerate(_pieces(body, limit) or [""]):
        text = f"{first}\n{piece}".strip() if number == 0 and first else piece
        if text:
            yield Passage(
                id=f"{document.id}#{number}",
                title=title,
                text=text,
                source=str(meta.get("path") or meta.get("source") or ""),
                language=str(meta.get("language") or "en"),
                split=str(meta.get("split") or "train"),
                kind="code" if number == 0 and first else "text",
            )


def _without_heading(body: str, signature: str, code: str) -> str:
    """The docstring alone: the source put the symbol's own line before it."""
    line, _, rest = body.partition("\n")
    short = code.rsplit(".", 1)[-1]
    return (
        rest.strip()
        if line.strip() == signature.strip() or re.match(rf"(async |class |def |module )*[\w.]*{short}\b", line)
        else body
    )


def _pieces(text: str, limit: int) -> list[str]:
    """Paragraphs joined up to `limit` characters; a longer one is cut at sentence ends, then between words."""
    units: list[str] = []
    for paragraph in re.split(r"\n\s*\n", text):
        if len(paragraph) <= limit:
            units.append(paragraph.strip())
            continue
        for sentence in sentences(paragraph) or [paragraph]:
            units += textwrap.wrap(sentence, limit, break_on_hyphens=False)
    pieces: list[str] = []
    for unit in filter(None, units):
        if pieces and len(pieces[-1]) + len(unit) + 1 <= limit:
            pieces[-1] += "\n" + unit
        else:
            pieces.append(unit)
    return pieces
