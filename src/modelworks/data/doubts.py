"""Doubts about data that training goes through with all the same: each one sentence, said once at the start.

Nothing is refused here: whoever overfits a page on purpose, to see that all works, is right to.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from hashlib import blake2b

import numpy as np

from modelworks.base.log import say

from .loader import Loader
from .tokens import TokenData

LOOKED_AT = 64 * 2**20  # tokens of training documents that are compared at most: about a second


def overlap(train: TokenData, validation: TokenData, limit: int = LOOKED_AT) -> int:
    """How many validation documents stand, word for word, among the training documents too.

    Only training documents as long as some validation document are read, and `limit` tokens at most.
    """
    digests = {_digest(validation.document(i)) for i in range(validation.n_documents)}
    alike = np.flatnonzero(np.isin(train.lengths, np.unique(validation.lengths)))
    alike = alike[np.cumsum(train.lengths[alike]) <= limit]
    shared = digests & {_digest(train.document(int(i))) for i in alike}
    return sum(_digest(validation.document(i)) in shared for i in range(validation.n_documents)) if shared else 0


def _digest(ids: np.ndarray) -> bytes:
    return blake2b(ids.tobytes(), digest_size=16).digest()


def told_overlap(shared: int, validation: int, what: str) -> None:
    """Say that so many of the validation examples are in the training data too, if any are."""
    if shared:
        say(
            f"{shared:,} of {validation:,} validation {what} stand word for word in the training data too, so the "
            "validation loss looks better than it is: prepare the data with dedup before split."
        )


def same(train: Iterable[object], validation: Iterable[object]) -> int:
    """How many of the validation items are equal to a training item (by their representation as text)."""
    known = {zlib.crc32(repr(item).encode()): item for item in train}
    return sum(known.get(zlib.crc32(repr(item).encode())) == item for item in validation)


def told_small(loader: Loader) -> None:
    """Say that the data does not fill a batch, if it does not."""
    stream = loader.stream
    if stream.windows > 1:
        return
    rows, batch = len(stream.groups(0, 0)), loader.rows * stream.world
    if rows < batch:
        say(
            f"the training data fills {rows} row{'s' * (rows > 1)} of {loader.max_len} tokens, less than the {batch} "
            "of a batch: every step sees some of it twice; lower rows or max_len, or bring more data."
        )
