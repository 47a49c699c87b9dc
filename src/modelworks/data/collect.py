"""Collect: documents of all named sources into one corpus, with a ledger of what was rejected and why."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from modelworks.base import folders, log
from modelworks.base.errors import UserError

from . import corpus
from .corpus import Account, Document, Ledger

SOURCES = "modelworks.data.sources"


def collect(specs: Sequence[str], out: Path) -> Ledger:
    """Read every `scheme:rest` of `specs` (`pydoc:stdlib`, `files:DIR`) and write the corpus to `out`.

    Sealing is the caller's (`files.new_directory`). Raises UserError for an unknown scheme, a missing place, or
    when no document could be read at all.
    """
    if not specs:
        raise UserError("collect: no source is named; write for instance from: ['files:DIR'].")
    for spec in specs:
        scheme, colon, _ = spec.partition(":")
        if not colon:
            raise UserError(f"'{spec}' is not a source; write it as scheme:place, for instance files:{spec}.")
        folders.find(SOURCES, scheme)
    ledger = Ledger()
    account = ledger.step("collect")
    with log.progress("collect", unit="documents") as bar:
        corpus.write(out, _documents(specs, account, bar), ledger)
    if account.kept.documents == 0:
        reasons = ", ".join(f"{count.documents} {reason}" for reason, count in sorted(account.left.items()))
        raise UserError(f"no document could be read from {', '.join(specs)} ({reasons or 'nothing there'}).")
    return ledger


def _documents(specs: Sequence[str], account: Account, bar: log.Progress) -> Iterator[Document]:
    """Documents of all sources under unique ids; the same id from two places gets `~2`, `~3` ..."""
    taken: dict[str, int] = {}
    for spec in specs:
        scheme, _, rest = spec.partition(":")
        for item in folders.find(SOURCES, scheme).documents(rest):
            account.came.add(1, item.bytes)
            bar.advance(1)
            if not isinstance(item, Document):
                account.leave(item)
                continue
            times = taken[item.id] = taken.get(item.id, 0) + 1
            if times > 1:
                item.id = f"{item.id}~{times}"
            account.kept.add(1, item.bytes)
            yield item
