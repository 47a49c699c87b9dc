"""Token shards: documents as memory-mapped ids with an index of documents and the tokenizer's digest inside.

    tokens.json        format, tokenizer digest, vocab_size, dtype, per split: documents, tokens, bytes, files, SHA-256
    <split>-00000.bin  ids, little-endian uint16 (uint32 from 65,536 words on), document after document
    <split>.idx        int64 [documents, 2]: where a document ends (in tokens), bytes of its text

Every document ends with `eos`; `bytes` count the UTF-8 text behind the ids, for bits per byte.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from modelworks.base import files
from modelworks.base.errors import DamagedError, UserError, nearest

from . import corpus
from .tokenizer import Tokenizer

INDEX = "tokens.json"
SHARD_TOKENS = 128 * 2**20
BATCH = 512  # documents encoded at once


def write(
    folder: Path, split: str, documents: Iterable[tuple[Sequence[int], int]], tokenizer: Tokenizer
) -> dict[str, Any]:
    """Write one split; `documents` yields (ids, bytes of the text). Returns the split's facts.

    Several splits may be written to one folder with one tokenizer; sealing is the caller's. Raises UserError when
    the folder holds tokens of another tokenizer, FailureError when the disk is full.
    """
    kind = np.dtype("<u2" if tokenizer.vocab_size < 65536 else "<u4")
    head = {"format": 1, "tokenizer": tokenizer.digest, "vocab_size": tokenizer.vocab_size, "dtype": kind.name}
    index = files.read_json(folder / INDEX) if (folder / INDEX).exists() else {**head, "splits": {}}
    if index["tokenizer"] != tokenizer.digest:
        raise UserError(f"{folder}: holds tokens of another tokenizer; write to another folder.")
    names: list[str] = []
    ends: list[tuple[int, int]] = []
    total = size = in_shard = 0
    file = None
    with files.disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            for ids, length in documents:
                if file is None or in_shard >= SHARD_TOKENS:
                    if file is not None:
                        file.close()
                    names.append(f"{split}-{len(names):05d}.bin")
                    file, in_shard = open(folder / names[-1], "wb"), 0  # noqa: SIM115 - closed below
                file.write(np.asarray(ids, dtype=kind).tobytes())
                total, size, in_shard = total + len(ids), size + length, in_shard + len(ids)
                ends.append((total, length))
        finally:
            if file is not None:
                file.close()
        (folder / f"{split}.idx").write_bytes(np.asarray(ends, dtype="<i8").reshape(-1, 2).tobytes())
    facts = {"documents": len(ends), "tokens": total, "bytes": size}
    facts["files"] = {
        name: {"bytes": (folder / name).stat().st_size, "sha256": files.sha256(folder / name)}
        for name in [*names, f"{split}.idx"]
    }
    index["splits"][split] = facts
    files.write_json(folder / INDEX, index)
    return facts


def encode_corpus(source: Path, tokenizer: Tokenizer, out: Path) -> dict[str, dict[str, Any]]:
    """Encode every split of a corpus, each document followed by `eos`. Returns facts by split."""
    return {
        split: write(out, split, _encoded(corpus.read(source, split), tokenizer), tokenizer)
        for split in corpus.ledger_of(source).shards
    }


def _encoded(documents: Iterator[corpus.Document], tokenizer: Tokenizer) -> Iterator[tuple[list[int], int]]:
    while batch := list(islice(documents, BATCH)):
        for document, ids in zip(batch, tokenizer.encode_batch([d.text for d in batch])):
            ids.append(tokenizer.eos)
            yield ids, document.bytes


def splits(folder: Path) -> list[str]:
    """Names of the splits in a folder of tokens. Raises UserError when it is none."""
    return list(_index(folder)["splits"])


def _index(folder: Path) -> dict[str, Any]:
    if not (folder / INDEX).is_file():
        raise UserError(f"{folder}: holds no tokens (no {INDEX}); encode a corpus into it first.")
    index = files.read_json(folder / INDEX)
    if not isinstance(index, dict) or not isinstance(index.get("splits"), dict) or index.get("format") != 1:
        raise DamagedError(f"{folder / INDEX}: is not an index of tokens; encode the corpus again.")
    return index


class TokenData:
    """One split, memory-mapped. `n_tokens`, `n_documents`, `bytes`; `lengths` int64 [documents] in tokens."""

    def __init__(self, shards: list[np.ndarray], index: np.ndarray) -> None:
        self._shards, self._ends = shards, index[:, 0]
        self.document_bytes = index[:, 1]
        self._starts = np.concatenate([[0], self._ends[:-1]]) if len(index) else np.zeros(0, np.int64)
        self.lengths = self._ends - self._starts
        self.n_documents, self.n_tokens = len(index), int(self._ends[-1]) if len(index) else 0
        self.bytes = int(self.document_bytes.sum())
        self.names: list[str] = []  # ids of the documents, where they are known
        self._shard_starts = np.concatenate([[0], np.cumsum([len(s) for s in shards])]).astype(np.int64)

    @classmethod
    def open(cls, folder: Path, split: str, tokenizer: Tokenizer | None = None, verify: bool = True) -> TokenData:
        """Open a split, checking sizes and (with `verify`, about a second a gigabyte) SHA-256 of its files.

        Raises UserError when the split is not there or was encoded by another tokenizer than the one given,
        DamagedError naming the file that is missing, cut short or changed.
        """
        index = _index(folder)
        if split not in index["splits"]:
            raise UserError(f"{folder}: has no split '{split}'{nearest(split, list(index['splits']))}.")
        if tokenizer is not None and tokenizer.digest != index["tokenizer"]:
            raise UserError(f"{folder}: was encoded by another tokenizer; encode the corpus again with this one.")
        facts = index["splits"][split]
        for name, fact in facts["files"].items():
            path = folder / name
            if not path.is_file():
                raise DamagedError(f"{path}: is missing; encode the corpus again.")
            if path.stat().st_size != fact["bytes"] or (verify and files.sha256(path) != fact["sha256"]):
                raise DamagedError(f"{path}: is damaged (not what was written); encode the corpus again.")
        kind = np.dtype(index["dtype"]).newbyteorder("<")
        shards = [np.memmap(folder / n, kind, "r") for n in facts["files"] if n.endswith(".bin") and facts["tokens"]]
        table = np.fromfile(folder / f"{split}.idx", "<i8").reshape(-1, 2)
        return cls(shards, table)

    @classmethod
    def of(cls, documents: Sequence[Sequence[int]], sizes: Sequence[int] | None = None) -> TokenData:
        """The same view over documents held in memory; `sizes` are the bytes of their texts."""
        ends = np.cumsum([len(d) for d in documents], dtype=np.int64)
        flat = np.concatenate([np.asarray(d, np.int64) for d in documents]) if len(documents) else np.zeros(0, np.int64)
        return cls([flat], np.stack([ends, np.asarray(sizes or [0] * len(documents), np.int64)], axis=1))

    def document(self, i: int, start: int = 0, end: int | None = None) -> np.ndarray:
        """Ids `start` to `end` of document `i` (to its end, `eos` included, unless given), int64; no more is read."""
        first, last = int(self._starts[i]), int(self._ends[i])
        shard = int(np.searchsorted(self._shard_starts, first, side="right")) - 1
        shard = min(shard, len(self._shards) - 1)
        offset = int(self._shard_starts[shard])  # a document never crosses shards
        last = last if end is None else min(last, first + end)
        return self._shards[shard][first + start - offset : last - offset].astype(np.int64)
