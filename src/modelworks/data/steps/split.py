"""split: train, validation and test by a hash of the document's group, so a document stays where it is for ever.

The group is `meta.group`, else the symbol (pydoc), else the document itself; members of a group stay together.
Adding documents moves none of the others. Small corpora are the exception: where a split would be empty it gets
the groups with the smallest hash, and one or two documents are cut into beginning, middle and end.
"""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field

from modelworks.base import seeds
from modelworks.base.config import Settings
from modelworks.base.errors import UserError

from ..corpus import Account, Document

SMALL = 400  # documents; of more than these, no split is empty but by a freak (1e-9 at 5 %)


class Config(Settings):
    validation: float = Field(default=0.05, ge=0.0, lt=1.0)
    """Share of the groups that training is watched on."""
    test: float = Field(default=0.05, ge=0.0, lt=1.0)
    """Share of the groups that are kept for the final evaluation."""
    seed: int = 0
    """Another seed gives another split."""


def group_of(document: Document) -> str:
    """What is never torn apart: `meta.group`, the symbol, or the document's id."""
    return str(document.meta.get("group") or document.meta.get("symbol") or document.id)


def place(group: str, seed: int) -> float:
    """A number in [0, 1) that belongs to the group and the seed."""
    return seeds.derive(seed, "split", group) / 2**63


def apply(documents: Iterator[Document], config: Config, ledger: Account) -> Iterator[Document]:
    """Yield every document with `meta.split` set. Raises UserError when the shares leave nothing to train on."""
    if config.validation + config.test >= 1:
        raise UserError(f"split: validation {config.validation} and test {config.test} leave nothing to train on.")
    first: list[Document] = []
    for document in documents:
        first.append(document)
        if len(first) > SMALL:
            break
    if len(first) <= SMALL:
        yield from _small(first, config, ledger)
        return
    for document in first:
        yield _put(document, config)
    for document in documents:
        yield _put(document, config)


def _put(document: Document, config: Config) -> Document:
    where = place(group_of(document), config.seed)
    name = "test" if where < config.test else "validation" if where < config.test + config.validation else "train"
    document.meta["split"] = name
    return document


def _small(documents: list[Document], config: Config, ledger: Account) -> Iterator[Document]:
    wanted = [name for name, share in (("test", config.test), ("validation", config.validation)) if share > 0]
    groups = sorted({group_of(document) for document in documents}, key=lambda g: (place(g, config.seed), g))
    if len(groups) <= len(wanted):
        for document in documents:
            yield from _cut(document, config, ledger)
        return
    names = {group_of(d): str(_put(d, config).meta["split"]) for d in documents}
    for name in [*wanted, "train"]:
        if name in names.values():
            continue
        # the first group whose split can spare it, by hash: from the end for train, from the beginning else
        for group in reversed(groups) if name == "train" else groups:
            if sum(other == names[group] for other in names.values()) > 1:
                names[group] = name
                break
    for document in documents:
        document.meta["split"] = names[group_of(document)]
        yield document


def _cut(document: Document, config: Config, ledger: Account) -> Iterator[Document]:
    """One document as up to three: its beginning to train on, its end to evaluate on, cut at line ends."""
    text, before = document.text, document.bytes
    ends = [_line_end(text, 1 - config.validation - config.test), _line_end(text, 1 - config.test), len(text)]
    pieces = [text[: ends[0]], text[ends[0] : ends[1]], text[ends[1] :]]
    document.text, document.meta["split"] = pieces[0], "train"
    ledger.change(before, document)
    yield document
    for name, piece in zip(("validation", "test"), pieces[1:]):
        if piece:
            part = Document(f"{document.id}~{name}", piece, {**document.meta, "split": name})
            ledger.make(part)
            yield part


def _line_end(text: str, share: float) -> int:
    """The end of the line nearest before `share` of the text; that very place where there is no line end."""
    at = round(len(text) * share)
    found = text.rfind("\n", 0, at)
    return found + 1 if found > at // 2 else at
