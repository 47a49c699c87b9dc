"""N-gram language models over numbers (bytes, tokens): modified Kneser-Ney, interpolated, exact, by NumPy.

    p_k(w | h) = max(c(hw) - D, 0) / c(h.)  +  backoff(h) * p_{k-1}(w | h without its first)        p_0 = 1 / V

`c` are counts in the highest order and numbers of distinct left neighbours below it; D depends on c (three discounts
an order, from the counts of counts). Chen and Goodman 1999, "An empirical study of smoothing techniques for language
modeling". Every n-gram gets a number: the number of its context times V plus its last word; so tables are sorted
int64 arrays for any vocabulary, nothing is hashed and nothing collides.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from modelworks.base.errors import UserError

UNSEEN = -1


@dataclass(slots=True)
class _Order:
    """What is known of n-grams of one length: sorted `keys` (context * V + word), their discounted `mass` within the
    context, and the share `backoff` that each context leaves to the next lower order."""

    keys: np.ndarray
    mass: np.ndarray
    backoff: np.ndarray


class NGram:
    """An interpolated n-gram model over words 0 .. `vocab_size` - 1 with contexts of up to `order` - 1 words."""

    def __init__(self, order: int, vocab_size: int) -> None:
        if order < 1 or vocab_size < 1:
            raise UserError(
                f"an n-gram model needs an order and a vocabulary of at least 1 (got {order}, {vocab_size})."
            )
        self.order, self.vocab_size = order, vocab_size
        self._orders: list[_Order] = []

    def fit(self, words: np.ndarray) -> NGram:
        """Count a stream of words, int [N]. Memory: about 60 bytes a word. Raises UserError where there is none."""
        stream = np.asarray(words, dtype=np.int64)
        if len(stream) == 0:
            raise UserError("an n-gram model needs some text to count.")
        if stream.min() < 0 or stream.max() >= self.vocab_size:
            raise UserError(f"the text holds a word outside 0 .. {self.vocab_size - 1}.")
        self._orders = []
        contexts, table = 1, _Table.of(stream, None)
        for length in range(2, min(self.order, len(stream)) + 1):
            longer = _Table.of(table.ids[:-1] * self.vocab_size + stream[length - 1 :], table.ids[1:])
            self._orders.append(_smooth(table, longer, contexts, self.vocab_size))
            contexts, table = len(table.keys), longer
        self._orders.append(_smooth(table, None, contexts, self.vocab_size))
        return self

    def bits(self, words: np.ndarray) -> np.ndarray:
        """-log2 of the probability of each word of a stream given those before it: float64 [N]."""
        stream = np.asarray(words, dtype=np.int64)
        probability = np.full(len(stream), 1.0 / self.vocab_size)
        context = np.zeros(len(stream), dtype=np.int64)
        for order in self._orders:
            known = context != UNSEEN
            key = np.where(known, context * self.vocab_size + stream, 0)
            place = np.minimum(np.searchsorted(order.keys, key), len(order.keys) - 1)
            seen = known & (order.keys[place] == key)
            backoff = np.where(known, order.backoff[np.where(known, context, 0)], 1.0)
            probability = np.where(seen, order.mass[place], 0.0) + backoff * probability
            number = np.where(seen, place, UNSEEN)
            context = np.concatenate([[UNSEEN], number[:-1]])  # the n-gram that ends one word earlier
        return -np.log2(probability)


@dataclass(slots=True)
class _Table:
    """The distinct n-grams of one length: sorted keys, how often each occurs, the number of the one that ends at each
    position (`ids`), and the number of each one's suffix (the n-gram without its first word) one order below."""

    keys: np.ndarray
    counts: np.ndarray
    ids: np.ndarray
    suffix: np.ndarray | None

    @classmethod
    def of(cls, keys: np.ndarray, suffixes: np.ndarray | None) -> _Table:
        distinct, first, ids, counts = np.unique(keys, return_index=True, return_inverse=True, return_counts=True)
        return cls(distinct, counts, ids, None if suffixes is None else suffixes[first])


def _smooth(table: _Table, above: _Table | None, contexts: int, vocab_size: int) -> _Order:
    """Discounted masses and backoffs of one order with so many `contexts`; `above` is the next higher order, if any."""
    context = table.keys // vocab_size
    counts = table.counts.astype(np.float64)
    if above is not None and above.suffix is not None:  # below the highest order: distinct left neighbours
        counts = np.bincount(above.suffix, minlength=len(counts)).astype(np.float64)
    discount = _discounts(counts)[np.minimum(counts, 3).astype(np.int64)]
    total = np.bincount(context, weights=counts, minlength=contexts)
    left = np.bincount(context, weights=discount, minlength=contexts)
    some = np.maximum(total, 1)
    return _Order(table.keys, (counts - discount) / some[context], np.where(total > 0, left / some, 1.0))


def _discounts(counts: np.ndarray) -> np.ndarray:
    """[0, D1, D2, D3+] from how many n-grams have count 1, 2, 3, 4; a constant where those are too few to tell."""
    n1, n2, n3, n4 = (int((counts == c).sum()) for c in (1, 2, 3, 4))
    if min(n1, n2, n3, n4) == 0:
        return np.array([0.0, 0.5, 0.75, 0.75])
    y = n1 / (n1 + 2 * n2)
    raw = [1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3]
    return np.array([0.0, *(float(np.clip(value, 0.05, number)) for number, value in enumerate(raw, 1))])
