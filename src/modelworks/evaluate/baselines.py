"""What a text costs without a neural network: n-grams over bytes and tokens, and `xz`; in bits for each document.

Each document is charged for its words and for the mark of its end, and nothing else is: streams read `end doc end doc
end`. All costs are divided by the UTF-8 bytes of the text alone, so they compare with each other and with a model.
"""

from __future__ import annotations

import lzma
from collections.abc import Sequence

import numpy as np

from modelworks.base.errors import UserError

from .ngram import NGram

END = 0  # the byte that marks a document's end; cleaned text holds no NUL


def byte_ngram(train: Sequence[str], heldout: Sequence[str], order: int = 6) -> np.ndarray:
    """Bits of each held-out document, float64 [documents], under byte n-grams counted on `train`."""
    return word_ngram([_bytes(text) for text in train], [_bytes(text) for text in heldout], 256, order, END)


def word_ngram(
    train: Sequence[np.ndarray] | Sequence[Sequence[int]],
    heldout: Sequence[np.ndarray] | Sequence[Sequence[int]],
    vocab_size: int,
    order: int,
    end: int,
) -> np.ndarray:
    """Bits of each held-out document under n-grams of numbered words (order 1 is the unigram).

    `end` is the word that marks a document's end; documents come without it. Raises UserError for an empty `train`
    or `heldout`.
    """
    if not len(train) or not len(heldout):
        raise UserError("an n-gram baseline needs documents to count and documents to score; one of the two is empty.")
    bits = NGram(order, vocab_size).fit(_stream(train, end)).bits(_stream(heldout, end))
    starts = np.cumsum([1, *(len(document) + 1 for document in heldout)])
    return np.add.reduceat(bits, starts[:-1])


def xz(heldout: Sequence[str]) -> float:
    """Bits of all held-out documents as one `xz -9e` file of their own."""
    return 8.0 * len(_compressed(_joined(heldout)))


def xz_after(train: Sequence[str], heldout: Sequence[str]) -> float:
    """Bits that the held-out documents add to an `xz -9e` file of the training documents.

    xz looks back 64 MiB, so more than that of `train` does not help it.
    """
    before = _joined(train)
    return 8.0 * (len(_compressed(before + _joined(heldout))) - len(_compressed(before)))


def _bytes(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-8", "surrogatepass"), dtype=np.uint8)


def _stream(documents: Sequence[np.ndarray] | Sequence[Sequence[int]], end: int) -> np.ndarray:
    mark = np.array([end], dtype=np.int64)
    pieces = [mark]
    for document in documents:
        pieces += [np.asarray(document, dtype=np.int64), mark]
    return np.concatenate(pieces)


def _joined(texts: Sequence[str]) -> bytes:
    return b"".join(text.encode("utf-8", "surrogatepass") + bytes([END]) for text in texts)


def _compressed(data: bytes) -> bytes:
    return lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)
