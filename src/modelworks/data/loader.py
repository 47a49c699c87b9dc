"""Loading: documents and examples as packed rows, in the endless, resumable order of `order.Stream`."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch

from modelworks.base.errors import UserError
from modelworks.base.protocols import Batch

from .ahead import Ahead
from .order import Stream
from .packing import IGNORED, Account, Piece, cut, lay, pack
from .tokens import TokenData

SAMPLED = 64


class Pieces(Protocol):
    """What a loader lays in rows: `lengths` int64 [n], each within a row, and piece `i` as (tokens, labels)."""

    lengths: np.ndarray
    account: Account

    def piece(self, i: int) -> Piece: ...

    def name(self, i: int) -> str: ...


class Documents:
    """Pieces of a language-model stream: every token of every document is a label exactly once.

    A document `a b eos` is read as `eos a b` with labels `a b eos`: its first token is predicted from `eos`, so
    the sum of losses covers the whole text (bits per byte need that). Longer than a row, it goes on in another
    piece without overlap. `bytes` is the UTF-8 length of the text behind.
    """

    def __init__(self, data: TokenData, eos: int, max_len: int) -> None:
        self._data, self._eos, self._max_len = data, eos, max_len
        counts = -(-data.lengths // max_len)
        self._document = np.repeat(np.arange(data.n_documents), counts)
        first = np.repeat(np.cumsum(counts) - counts, counts)
        self._part = np.arange(len(self._document)) - first
        self.lengths = np.minimum(max_len, data.lengths[self._document] - self._part * max_len)
        self.bytes = data.bytes
        self.account = Account(examples=data.n_documents, tokens=data.n_tokens, predicted=data.n_tokens)

    def piece(self, i: int) -> Piece:
        document, start = int(self._document[i]), int(self._part[i]) * self._max_len
        if start:  # one id more before it: what is read is what is learnt, one later
            ids = self._data.document(document, start - 1, start + self._max_len)
            return ids[:-1], ids[1:]
        labels = self._data.document(document, 0, self._max_len)
        tokens = np.empty_like(labels)
        tokens[0], tokens[1:] = self._eos, labels[:-1]
        return tokens, labels

    def name(self, i: int) -> str:
        """The id of the piece's document where the data has ids, else its number, counted from 1."""
        number = int(self._document[i])
        return self._data.names[number] if self._data.names else f"document {number + 1}"


class Examples:
    """Pieces of examples with a mask: (ids, mask) pairs, mask 1 on the ids to learn. Held in memory.

    Examples longer than a row lose their end; those with nothing to learn are left out; both are in `account`.
    """

    def __init__(
        self,
        examples: Iterable[tuple[Sequence[int], Sequence[int] | None]],
        max_len: int,
        names: Sequence[str] = (),
    ) -> None:
        self.account = Account()
        cuts = [cut(ids, mask, max_len, self.account) for ids, mask in examples]
        self._numbers = [number for number, piece in enumerate(cuts) if piece is not None]
        self._pieces = [piece for piece in cuts if piece is not None]
        self._names = names
        self.lengths = np.array([len(ids) for ids, _ in self._pieces], dtype=np.int64)

    def piece(self, i: int) -> Piece:
        return self._pieces[i]

    def name(self, i: int) -> str:
        """The name that the example was given, else its number, counted from 1."""
        number = self._numbers[i]
        return self._names[number] if self._names else f"example {number + 1}"


def _contents(pieces: Pieces) -> int:
    """A number that tells other data of the same lengths: of `SAMPLED` pieces spread over all of them."""
    value = 0
    for i in np.unique(np.linspace(0, len(pieces.lengths) - 1, SAMPLED).astype(np.int64)):
        for ids in pieces.piece(int(i)):
            value = zlib.crc32(np.ascontiguousarray(ids, np.int64).tobytes(), value)
    return value


class Loader:
    """Endless iterator of `Batch(inputs={"tokens", "labels", "documents"}, weight)`, each int64 [rows, max_len].

    `labels[:, t]` is the token after position t in its document, -100 elsewhere; `documents` counts from 1 in a
    row, 0 is padding; `weight` is how many labels are not -100, never 0. `rows` is what one rank takes a step;
    `workers` threads lay batches ahead (0: none), which changes nothing but when it is done.
    Raises UserError when the data holds nothing to predict.
    """

    def __init__(
        self,
        pieces: Pieces,
        rows: int,
        max_len: int,
        seed: int,
        fill: int = 0,
        rank: int | None = None,
        world: int | None = None,
        workers: int = 0,
    ) -> None:
        if len(pieces.lengths) == 0:
            account = pieces.account
            raise UserError(
                f"there is nothing to predict in the data ({account.examples} examples, {account.tokens} tokens, "
                f"{account.masked + account.dropped} of them context only); check the data or raise max_len."
            )
        self.pieces, self.rows, self.max_len, self.fill = pieces, rows, max_len, fill
        facts = (max_len, _contents(pieces))
        self.stream = Stream(pieces.lengths, lambda sizes: pack(sizes, max_len), seed, rows, rank, world, facts)
        self._ahead = Ahead(self.stream, self._batch, workers)
        self._account: Account | None = None

    @property
    def account(self) -> Account:
        """Where every token goes in the first epoch, and how full the rows are."""
        if self._account is None:
            account = self.pieces.account
            account.rows = sum(len(self.stream.groups(0, window)) for window in range(self.stream.windows))
            account.positions = account.rows * self.max_len
            account.used = int(self.pieces.lengths.sum())
            account.padded = account.positions - account.used
            account.check()
            self._account = account
        return self._account

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        return self._ahead.next()

    def _batch(self, rows: list[list[int]]) -> Batch:
        """The rows' pieces, laid. Runs in a worker's thread where there are workers."""
        laid = lay([[self.pieces.piece(i) for i in row] for row in rows], self.max_len, self.fill)
        tokens, labels, documents = (torch.from_numpy(column) for column in laid)
        weight = int(np.count_nonzero(laid[1] != IGNORED))
        if weight == 0:
            raise UserError("a batch holds nothing to predict (every label is masked); check the masks of the data.")
        return Batch({"tokens": tokens, "labels": labels, "documents": documents}, weight, rows)

    def describe(self, batch: Batch) -> list[str]:
        """Names of the documents that have pieces in the batch, each once."""
        return list(dict.fromkeys(self.pieces.name(i) for row in batch.source for i in row))

    def validation_batches(self) -> Iterator[Batch]:
        """All pieces once, in a fixed order, packed the same way every time; the last batch may have fewer rows.

        Every rank gets all of them: sums need no reduction.
        """
        rows = pack(self.pieces.lengths, self.max_len)
        for start in range(0, len(rows), self.rows):
            yield self._batch(rows[start : start + self.rows])

    def state_dict(self) -> dict[str, Any]:
        """Where the next batch begins, as plain numbers."""
        return self._ahead.place()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken. Raises UserError when data, seed or row length are not the same."""
        self._ahead.go(state)
