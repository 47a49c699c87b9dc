"""dedup: one of all documents that say the same: equal texts, and near ones by the true overlap of their shingles.

    longest first:  same text as a kept one? -> left    MinHash bands shared with a kept one,
                                                        and Jaccard >= threshold?  -> left    else kept

MinHash only proposes (it misses fewer than one pair in a thousand at the threshold); the overlap itself decides.
What is kept depends on the documents, not on their order: the longest stays, of equal ones the smallest id.
No two kept documents overlap, and each that left has a kept one that it overlaps with.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Iterator
from functools import lru_cache
from typing import IO

import numpy as np
from pydantic import Field

from modelworks.base.config import Settings
from modelworks.base.errors import UserError

from ..corpus import Account, Document

_TOKEN = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff]|\w+?(?=[\u3040-\u30ff"
                    r"\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff]|\b)")  # fmt: skip
_SLOTS = 128
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_BATCH = 256


class Config(Settings):
    threshold: float = Field(default=0.8, gt=0.0, le=1.0)
    """Jaccard overlap of shingles from which two documents count as near duplicates; 1 leaves equal texts only."""
    shingle: int = Field(default=5, ge=1)
    """Words (single characters in Chinese and Japanese) in a row that make a shingle."""


def apply(documents: Iterator[Document], config: Config, ledger: Account) -> Iterator[Document]:
    """Yield the survivors in the order in which they came.

    Texts wait in a temporary file; memory holds about 600 bytes a document. Raises UserError without rensa.
    """
    with tempfile.TemporaryFile() as spool:
        places, keys, exact, signatures = _read(documents, config, spool)

        def document(i: int) -> Document:
            spool.seek(places[i])
            record = json.loads(spool.readline())
            return Document(record["id"], record["text"], record["meta"])

        @lru_cache(maxsize=4096)
        def shingles_of(i: int) -> np.ndarray:
            return shingles(document(i).text, config.shingle)

        bands = _bands(signatures, config.threshold) if config.threshold < 1 else np.zeros((len(keys), 0), np.uint64)
        shared = _shared(bands)
        kept_texts: set[bytes] = set()
        kept_bands: dict[tuple[int, int], list[int]] = {}
        reasons: dict[int, str] = {}
        for i in sorted(range(len(keys)), key=keys.__getitem__):
            if exact[i] in kept_texts:
                reasons[i] = "exact duplicate"
                continue
            mine = [(band, int(bands[i, band])) for band in np.flatnonzero(shared[i]).tolist()]
            near = {other for key in mine for other in kept_bands.get(key, ())}
            if any(jaccard(shingles_of(i), shingles_of(other)) >= config.threshold for other in sorted(near)):
                reasons[i] = "near duplicate"
                continue
            kept_texts.add(exact[i])
            for key in mine:
                kept_bands.setdefault(key, []).append(i)
        for i in range(len(keys)):
            if i in reasons:
                ledger.leave(document(i), reasons[i])
            else:
                yield document(i)


def _read(
    documents: Iterator[Document], config: Config, spool: IO[bytes]
) -> tuple[list[int], list[tuple[int, str]], list[bytes], np.ndarray]:
    """Spool all documents; for each its place, sort key, digest of the text, and MinHash [n, 128] uint32."""
    try:
        from rensa import RMinHash
    except ImportError:
        raise UserError("dedup needs rensa; install it with pip install 'modelworks[data]'.") from None
    places: list[int] = []
    keys: list[tuple[int, str]] = []
    exact: list[bytes] = []
    rows: list[np.ndarray] = [np.zeros((0, _SLOTS), np.uint32)]
    waiting: list[list[int]] = []

    def sketch() -> None:
        matrix = RMinHash.digest_matrix_from_token_hash_sets(waiting, _SLOTS, 42)
        rows.append(np.asarray(matrix.to_rows(), dtype=np.uint32).reshape(-1, _SLOTS))
        waiting.clear()

    for document in documents:
        places.append(spool.tell())
        record = {"id": document.id, "text": document.text, "meta": document.meta}
        spool.write(json.dumps(record, ensure_ascii=True).encode() + b"\n")
        keys.append((-len(document.text), document.id))
        exact.append(hashlib.blake2b(" ".join(document.text.split()).encode(), digest_size=16).digest())
        if config.threshold < 1:
            waiting.append(shingles(document.text, config.shingle).tolist())
            if len(waiting) == _BATCH:
                sketch()
    if waiting:
        sketch()
    return places, keys, exact, np.concatenate(rows)


def tokens(text: str) -> list[str]:
    """Lower-case words; every Chinese, Japanese or Korean character alone; the text itself where it has none."""
    return _TOKEN.findall(text.lower()) or [text.strip()]


def shingles(text: str, size: int) -> np.ndarray:
    """Sorted distinct 64-bit hashes (uint64) of all runs of `size` tokens; of the whole where it is shorter."""
    words = tokens(text)
    ids = np.frombuffer(b"".join(hashlib.blake2b(w.encode(), digest_size=8).digest() for w in words), dtype="<u8")
    size = min(size, len(ids))
    with np.errstate(over="ignore"):
        mixed = np.zeros(len(ids) - size + 1, dtype=np.uint64)
        for place in range(size):
            mixed = (mixed ^ ids[place : place + len(mixed)]) * _MULTIPLIER
            mixed ^= mixed >> np.uint64(29)
    return np.unique(mixed)


def jaccard(left: np.ndarray, right: np.ndarray) -> float:
    """Size of the intersection over size of the union of two sorted sets of distinct hashes."""
    both = len(np.intersect1d(left, right, assume_unique=True))
    return both / (len(left) + len(right) - both)


def _bands(signatures: np.ndarray, threshold: float) -> np.ndarray:
    """Hashes of the bands of every signature, uint64 [n, bands]; as many slots a band as keep misses below 1e-3."""
    width = next(r for r in (16, 8, 4, 2, 1) if r == 1 or (1 - threshold**r) ** (_SLOTS // r) < 1e-3)
    parts = signatures.reshape(len(signatures), _SLOTS // width, width).astype(np.uint64)
    mixed = np.zeros(parts.shape[:2], dtype=np.uint64)
    with np.errstate(over="ignore"):
        for place in range(width):
            mixed = (mixed ^ parts[:, :, place]) * _MULTIPLIER
            mixed ^= mixed >> np.uint64(31)
    return mixed


def _shared(bands: np.ndarray) -> np.ndarray:
    """True where another document has the same band: bool [n, bands]."""
    out = np.zeros(bands.shape, dtype=bool)
    for band in range(bands.shape[1]):
        _, inverse, counts = np.unique(bands[:, band], return_inverse=True, return_counts=True)
        out[:, band] = counts[inverse.reshape(-1)] > 1
    return out
