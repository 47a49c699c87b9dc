"""Corpora: documents in compressed shards with a ledger that accounts for every document and byte that came in.

    came + made (+ bytes changed)  =  kept + left for each reason        for every step
    kept by one step               =  came to the next

A step says what it leaves out and changes; what comes and goes is counted by the iterators around it, so a
document that a step forgets breaks the balance.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modelworks.base import files
from modelworks.base.errors import DamagedError, FailureError, UserError, nearest

from . import lines

LEDGER = "ledger.json"
SHARD_BYTES = 64 * 2**20
EXAMPLES = 5  # ids kept in the ledger for every reason, for people to look at


@dataclass(slots=True)
class Document:
    """A text with its origin. `id` is unique in its corpus; `meta` holds JSON-like facts, at least `source`."""

    id: str
    text: str
    meta: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.id, self.text = lines.mend(self.id), lines.mend(self.text)

    @property
    def bytes(self) -> int:
        """Length of the text in UTF-8."""
        return len(self.text) if self.text.isascii() else len(self.text.encode())


@dataclass(slots=True)
class Rejected:
    """Something that came in and gave no document: why, and how many bytes it had."""

    id: str
    reason: str
    bytes: int = 0

    def __post_init__(self) -> None:
        self.id = lines.mend(self.id)


@dataclass(slots=True)
class Count:
    """So many documents with so many bytes of text."""

    documents: int = 0
    bytes: int = 0

    def add(self, documents: int, size: int) -> None:
        self.documents += documents
        self.bytes += size


class Account:
    """What one step did: `came`, `kept`, `left` by reason, `made` (documents it added), `changed` (bytes, signed)."""

    def __init__(self, step: str) -> None:
        self.step = step
        self.came, self.kept, self.made, self.changed = Count(), Count(), Count(), Count()
        self.left: dict[str, Count] = {}
        self.examples: dict[str, list[str]] = {}
        self.notes: dict[str, int] = {}

    def leave(self, item: Document | Rejected, reason: str | None = None) -> None:
        """Count an item that goes no further. `reason` may be left out for a Rejected, which carries its own."""
        why = reason or (item.reason if isinstance(item, Rejected) else "")
        self.left.setdefault(why, Count()).add(1, item.bytes)
        seen = self.examples.setdefault(why, [])
        if len(seen) < EXAMPLES:
            seen.append(item.id[:200])

    def change(self, before: int, document: Document) -> None:
        """Tell that the text of `document` was rewritten; `before` is its length in bytes until now."""
        self.changed.add(1, document.bytes - before)

    def make(self, document: Document) -> None:
        """Tell that the step adds this document to those that came (a passage cut out, a derived question)."""
        self.made.add(1, document.bytes)

    def note(self, what: str, count: int = 1) -> None:
        """Count something else worth reporting (masked e-mail addresses, repaired texts)."""
        if count:
            self.notes[what] = self.notes.get(what, 0) + count

    def incoming(self, documents: Iterable[Document]) -> Iterator[Document]:
        """Pass documents on, counting those that come."""
        for document in documents:
            self.came.add(1, document.bytes)
            yield document

    def outgoing(self, documents: Iterable[Document]) -> Iterator[Document]:
        """Pass documents on, counting those that stay."""
        for document in documents:
            self.kept.add(1, document.bytes)
            yield document

    def check(self) -> None:
        """Raise FailureError when what came is not what was kept, left, made and changed."""
        left = Count(sum(c.documents for c in self.left.values()), sum(c.bytes for c in self.left.values()))
        for unit, came, out in (
            ("documents", self.came.documents + self.made.documents, self.kept.documents + left.documents),
            ("bytes", self.came.bytes + self.made.bytes + self.changed.bytes, self.kept.bytes + left.bytes),
        ):
            if came != out:
                raise FailureError(
                    f"step {self.step}: the ledger does not balance ({came:,} {unit} came or were made, {out:,} were "
                    "kept or left); this is a bug in the step, please report it."
                )

    def as_dict(self) -> dict[str, Any]:
        """The account as JSON-like data (the inverse of `from_dict`)."""

        def plain(count: Count) -> dict[str, int]:
            return {"documents": count.documents, "bytes": count.bytes}

        out: dict[str, Any] = {"step": self.step, "came": plain(self.came), "kept": plain(self.kept)}
        out["left"] = {
            reason: {**plain(count), "examples": self.examples.get(reason, [])}
            for reason, count in sorted(self.left.items())
        }
        for name, count in (("made", self.made), ("changed", self.changed)):
            if count.documents or count.bytes:
                out[name] = plain(count)
        if self.notes:
            out["notes"] = dict(sorted(self.notes.items()))
        return out

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Account:
        account = cls(data["step"])
        for name in ("came", "kept", "made", "changed"):
            value = data.get(name, {})
            setattr(account, name, Count(value.get("documents", 0), value.get("bytes", 0)))
        for reason, value in data["left"].items():
            account.left[reason] = Count(value["documents"], value["bytes"])
            account.examples[reason] = list(value.get("examples", []))
        account.notes = dict(data.get("notes", {}))
        return account


class Ledger:
    """The accounts of all steps in order, and the shards that the corpus consists of (split -> list of facts)."""

    def __init__(self, accounts: list[Account] | None = None) -> None:
        self.accounts = accounts or []
        self.shards: dict[str, list[dict[str, Any]]] = {}

    def step(self, name: str) -> Account:
        """Open the account of the next step."""
        self.accounts.append(Account(name))
        return self.accounts[-1]

    def check(self) -> None:
        """Raise FailureError unless every step balances and each step got what the one before it kept."""
        for account in self.accounts:
            account.check()
        for before, after in zip(self.accounts, self.accounts[1:]):
            if before.kept != after.came:
                raise FailureError(
                    f"step {after.step} got {after.came.documents:,} documents, but {before.step} kept "
                    f"{before.kept.documents:,}; this is a bug, please report it."
                )

    def as_dict(self) -> dict[str, Any]:
        return {"format": 1, "steps": [account.as_dict() for account in self.accounts], "shards": self.shards}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Ledger:
        ledger = cls([Account.from_dict(step) for step in data["steps"]])
        ledger.shards = data["shards"]
        return ledger

    @property
    def splits(self) -> dict[str, Count]:
        """Documents and bytes of each split."""
        return {
            split: Count(sum(s["documents"] for s in shards), sum(s["bytes"] for s in shards))
            for split, shards in self.shards.items()
        }

    def table(self) -> list[tuple[str, str, int, int]]:
        """Rows for people: step, what (came, left: reason, kept ...), documents, bytes."""
        rows = []
        for account in self.accounts:
            rows.append((account.step, "came", account.came.documents, account.came.bytes))
            if account.made.documents:
                rows.append((account.step, "made", account.made.documents, account.made.bytes))
            if account.changed.documents:
                rows.append((account.step, "changed", account.changed.documents, account.changed.bytes))
            for reason, count in sorted(account.left.items()):
                rows.append((account.step, f"left: {reason}", count.documents, count.bytes))
            rows.append((account.step, "kept", account.kept.documents, account.kept.bytes))
        return rows


def write(folder: Path, documents: Iterable[Document], ledger: Ledger | None = None) -> Ledger:
    """Write documents to `folder` as shards, one set for each `meta["split"]` ('all' where there is none).

    The ledger is checked and written last. Sealing is the caller's (`files.new_directory`), as is an empty
    folder to write into. Raises FailureError when the ledger does not balance or the disk is full.
    """
    ledger = ledger or Ledger()
    ledger.shards = {}
    open_shards: dict[str, lines.Writer] = {}
    try:
        for document in documents:
            split = str(document.meta.get("split", "all"))
            shards = ledger.shards.setdefault(split, [])
            writer = open_shards.get(split)
            if writer is None or writer.bytes >= SHARD_BYTES:
                if writer is not None:
                    writer.close()
                name = f"{split}-{len(shards):05d}.jsonl.zst"
                shards.append({"file": name, "documents": 0, "bytes": 0})
                writer = open_shards[split] = lines.Writer(folder / name)
            writer.add({"id": document.id, "text": document.text, "meta": document.meta})
            shards[-1]["documents"] += 1
            shards[-1]["bytes"] += document.bytes
    finally:
        for writer in open_shards.values():
            writer.close()
    ledger.check()
    files.write_json(folder / LEDGER, ledger.as_dict())
    return ledger


def ledger_of(folder: Path) -> Ledger:
    """The ledger of a corpus. Raises UserError when `folder` is not one, DamagedError when it cannot be understood."""
    if not (folder / LEDGER).is_file():
        what = "is not a corpus (it has no ledger.json)" if folder.is_dir() else "there is no such folder"
        raise UserError(f"{folder}: {what}; make one with modelworks collect.")
    data = files.read_json(folder / LEDGER)
    try:
        return Ledger.from_dict(data)
    except (KeyError, TypeError, AttributeError):
        raise DamagedError(f"{folder / LEDGER}: is not a ledger; make the corpus again.") from None


def read(folder: Path, split: str | None = None) -> Iterator[Document]:
    """Yield the documents of a corpus (of one split, or of all) in order, holding one at a time.

    Raises UserError when the folder is no corpus or lacks the split, DamagedError naming the shard when one is
    missing, cut short or changed.
    """
    shards = ledger_of(folder).shards
    if split is not None and split not in shards:
        raise UserError(f"{folder}: has no split '{split}'{nearest(split, list(shards))}.")
    return _read(folder, [s for name in ([split] if split is not None else shards) for s in shards[name]])


def _read(folder: Path, shards: list[dict[str, Any]]) -> Iterator[Document]:
    for shard in shards:
        path = folder / shard["file"]
        if not path.is_file():
            raise DamagedError(f"{path}: is missing; make the corpus again.")
        seen = 0
        for record in lines.read(path):
            try:
                document = Document(record["id"], record["text"], record["meta"])
            except (KeyError, TypeError, AttributeError):
                raise DamagedError(f"{path}:{seen + 1}: is not a document; make the corpus again.") from None
            seen += 1
            yield document
        if seen != shard["documents"]:
            raise DamagedError(f"{path}: holds {seen} documents where {shard['documents']} belong; make it again.")
