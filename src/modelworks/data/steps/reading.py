"""reading: the corpus again, with pages on which train questions stand answered below their passages.

A model learns to look things up (to copy a name, a default, a sentence from where it stands) long before it is
taught to chat, if its pre-training text has pages where that pays. Only the train split gets such pages, made of
train questions; what validation and test measure stays as it was.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ...base.config import Count, Settings
from .. import corpus, lines
from ..corpus import Account, Document, Ledger


class Config(Settings):
    pages: Count = 2500
    """Pages added, at most: one a train question."""


def build(source: Path, out: Path, config: Config, seed: int) -> dict[str, int]:
    """Read the corpus `source` and `out/conversations`, write the corpus `out`. Returns the pages made."""
    ledger = Ledger(list(corpus.ledger_of(source).accounts))
    account = ledger.step("reading")
    incoming = account.incoming(corpus.read(source))
    corpus.write(out, account.outgoing(_with_pages(incoming, out, config.pages, account)), ledger)
    return {"pages": account.made.documents}


def _with_pages(documents: Iterator[Document], out: Path, limit: int, account: Account) -> Iterator[Document]:
    yield from documents
    for number, talk in enumerate(lines.read(out / "conversations" / "train.jsonl.zst")):
        if number == limit:
            return
        asked, said = (message["content"] for message in talk["messages"])
        page = Document(f"reading:{talk['id']}", f"{asked}\nAnswer: {said}", {"source": "reading", "split": "train"})
        account.make(page)
        yield page
