"""reading: the corpus again, with pages that teach to look things up, for pre-training.

Copying a name, a default or a sentence from where it stands (an induction head) is what a grounded answer is made
of. Short documents give a small model little reason to learn it; two kinds of pages do, and are added to the train
split only, so that what validation and test measure stays as it was:

    answered   a train question below its passages, with its answer
    repeated   a few lines of the corpus, twice: the second time every word can be copied

A 2M-parameter model learns to copy within 400 steps on repeated pages alone, and not reliably in as many steps that
hold a few of them among documents (docs/log.md): drill first, then read.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

from ...base import seeds
from ...base.config import Count, Settings
from .. import corpus, lines
from ..corpus import Document, Ledger
from ..grounding import view
from ..retrieve import Passage, Passages
from .passages import FILE

LINE = 100  # characters of a passage that a repeated page takes
HALF = 210  # characters, about: of a page before it repeats


class Config(Settings):
    documents: bool = True
    """The corpus itself too; without it there are the pages alone, to drill with."""
    answered: Count = 1500
    """Pages with a question answered, at most: one a train question."""
    repeated: Count = 3000
    """Pages that say everything twice."""


def build(source: Path, out: Path, config: Config, seed: int) -> dict[str, int]:
    """Write the corpus `out` from the corpus `source`, and from the passages and conversations in either of them.

    Returns how many pages were made.
    """
    made = out if (out / FILE).is_file() else source
    ledger = Ledger(list(corpus.ledger_of(source).accounts) if config.documents else [])
    account = ledger.step("reading")
    everything = [passage for passage in Passages(made / FILE).all() if passage.split == "train"]
    rng = seeds.generator(seed, "reading")

    def documents() -> Iterator[Document]:
        yield from account.incoming(corpus.read(source) if config.documents else ())
        for page in (*_answered(made, config.answered), *_repeated(everything, config.repeated, rng)):
            account.make(page)
            yield page

    corpus.write(out, account.outgoing(documents()), ledger)
    return {"pages": account.made.documents}


def _answered(out: Path, limit: int) -> Iterator[Document]:
    for number, talk in enumerate(lines.read(out / "conversations" / "train.jsonl.zst")):
        if number == limit:
            return
        asked, said = (message["content"] for message in talk["messages"])
        yield _page(f"answered:{talk['id']}", f"{asked}\nAnswer: {said}")


def _repeated(passages: list[Passage], limit: int, rng: random.Random) -> Iterator[Document]:
    for number in range(limit if passages else 0):
        text = ""
        while len(text) < HALF:
            text += view(rng.choice(passages), LINE) + "\n"
        yield _page(f"repeated:{number}", text[:HALF] + "\n" + text[:HALF])


def _page(identifier: str, text: str) -> Document:
    return Document(identifier, text, {"source": "reading", "split": "train"})
