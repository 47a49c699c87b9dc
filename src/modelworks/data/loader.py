"""Loading: an endless, resumable order of batches that depends on (seed, data) only, not on ranks or restarts.

epoch:  all pieces, shuffled  ->  windows of pieces  ->  each packed into rows, rows shuffled  ->  row stream
step s of rank r of w:  rows [s*w*R + r*R, s*w*R + (r+1)*R) of that stream, R = rows a rank takes a step
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch

from modelworks.base import distributed, files, seeds
from modelworks.base.errors import UserError
from modelworks.base.protocols import Batch

from .packing import IGNORED, Account, Piece, cut, lay, pack
from .tokens import TokenData

WINDOW = 16384  # pieces packed at once: enough for rows to fill up, small enough to start at once


class Pieces(Protocol):
    """What a loader lays in rows: `lengths` int64 [n], each within a row, and piece `i` as (tokens, labels)."""

    lengths: np.ndarray
    account: Account

    def piece(self, i: int) -> Piece: ...


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
        ids = self._data.document(int(self._document[i]))
        start = int(self._part[i]) * self._max_len
        labels = ids[start : start + self._max_len]
        before = self._eos if start == 0 else int(ids[start - 1])
        return np.concatenate([[before], labels[:-1]]).astype(np.int64), labels


class Examples:
    """Pieces of examples with a mask: (ids, mask) pairs, mask 1 on the ids to learn. Held in memory.

    Examples longer than a row lose their end; those with nothing to learn are left out; both are in `account`.
    """

    def __init__(self, examples: Iterable[tuple[Sequence[int], Sequence[int] | None]], max_len: int) -> None:
        self.account = Account()
        cuts = (cut(ids, mask, max_len, self.account) for ids, mask in examples)
        self._pieces = [piece for piece in cuts if piece is not None]
        self.lengths = np.array([len(ids) for ids, _ in self._pieces], dtype=np.int64)

    def piece(self, i: int) -> Piece:
        return self._pieces[i]


def shuffled(count: int, seed: int, *parts: object) -> np.ndarray:
    """A permutation of range(count) int64 that depends on the arguments only.

    Sorts SplitMix64 hashes (Steele et al. 2014), so no library's generator can change it between versions.
    """
    with np.errstate(over="ignore"):
        x = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        x += np.uint64(seeds.derive(seed, *parts))
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return np.argsort(x ^ (x >> np.uint64(31)), kind="stable")


class Order:
    """Endless lists of `rows` indices out of range(count): reshuffled each epoch, sliced by rank, resumable.

    For objectives whose examples are not packed (pairs). An epoch's end falls inside a list where it may.
    """

    def __init__(self, count: int, rows: int, seed: int, rank: int | None = None, world: int | None = None) -> None:
        if count < 1:
            raise UserError("there is no example to learn from; check the data.")
        self.count, self.rows, self.seed = count, rows, seed
        self.rank = distributed.rank() if rank is None else rank
        self.world = distributed.world_size() if world is None else world
        self.position = 0  # examples given out so far, over all ranks and epochs
        self._epoch, self._order = -1, np.zeros(0, np.int64)

    def __iter__(self) -> Iterator[list[int]]:
        return self

    def __next__(self) -> list[int]:
        start = self.position + self.rank * self.rows
        self.position += self.rows * self.world
        return [self._at(place) for place in range(start, start + self.rows)]

    def _at(self, place: int) -> int:
        epoch, within = divmod(place, self.count)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, shuffled(self.count, self.seed, "epoch", epoch)
        return int(self._order[within])

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position, "count": self.count, "seed": self.seed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if (state["count"], state["seed"]) != (self.count, self.seed):
            raise UserError("the data or the seed changed since the checkpoint; start a new run.")
        self.position = int(state["position"])


class Loader:
    """Endless iterator of `Batch(inputs={"tokens", "labels", "documents"}, weight)`, each int64 [rows, max_len].

    `labels[:, t]` is the token after position t in its document, -100 elsewhere; `documents` counts from 1 in a
    row, 0 is padding; `weight` is how many labels are not -100, never 0. `rows` is what one rank takes a step.
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
    ) -> None:
        if len(pieces.lengths) == 0:
            account = pieces.account
            raise UserError(
                f"there is nothing to predict in the data ({account.examples} examples, {account.tokens} tokens, "
                f"{account.masked + account.dropped} of them context only); check the data or raise max_len."
            )
        self.pieces, self.rows, self.max_len, self.seed, self.fill = pieces, rows, max_len, seed, fill
        self.rank = distributed.rank() if rank is None else rank
        self.world = distributed.world_size() if world is None else world
        self.epoch = self.window = self.row = 0  # the next row of the stream
        self._packed: tuple[int, int] | None = None
        self._rows: list[list[int]] = []
        self._order: tuple[int, np.ndarray] = (-1, np.zeros(0, np.int64))
        self._account: Account | None = None

    @property
    def account(self) -> Account:
        """Where every token goes in the first epoch, and how full the rows are."""
        if self._account is None:
            account = self.pieces.account
            account.rows = sum(len(self._pack(0, window)) for window in range(self._windows))
            account.positions = account.rows * self.max_len
            account.used = int(self.pieces.lengths.sum())
            account.padded = account.positions - account.used
            account.check()
            self._account = account
        return self._account

    @property
    def _windows(self) -> int:
        return -(-len(self.pieces.lengths) // WINDOW)

    def _pack(self, epoch: int, window: int) -> list[list[int]]:
        """The rows of one window, each a list of pieces, in the order they are given out."""
        if self._order[0] != epoch:
            self._order = (epoch, shuffled(len(self.pieces.lengths), self.seed, "epoch", epoch))
        chosen = self._order[1][window * WINDOW : (window + 1) * WINDOW]
        rows = pack(self.pieces.lengths[chosen], self.max_len)
        order = shuffled(len(rows), self.seed, "rows", epoch, window)
        return [chosen[rows[place]].tolist() for place in order.tolist()]

    def _take(self, count: int, skip_before: int, keep: int) -> list[list[int]]:
        """Advance the stream by `count` rows and return the `keep` of them after the first `skip_before`."""
        taken = []
        for number in range(count):
            if self._packed != (self.epoch, self.window):
                self._rows, self._packed = self._pack(self.epoch, self.window), (self.epoch, self.window)
            if skip_before <= number < skip_before + keep:
                taken.append(self._rows[self.row])
            self.row += 1
            if self.row == len(self._rows):
                self.row, self.window = 0, self.window + 1
                if self.window == self._windows:
                    self.window, self.epoch = 0, self.epoch + 1
        return taken

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        return self._batch(self._take(self.rows * self.world, self.rank * self.rows, self.rows))

    def _batch(self, rows: list[list[int]]) -> Batch:
        laid = [lay([self.pieces.piece(i) for i in row], self.max_len, self.fill) for row in rows]
        tokens, labels, documents = (torch.from_numpy(np.stack(column)) for column in zip(*laid))
        weight = int((labels != IGNORED).sum())
        if weight == 0:
            raise UserError("a batch holds nothing to predict (every label is masked); check the masks of the data.")
        return Batch({"tokens": tokens, "labels": labels, "documents": documents}, weight)

    def validation_batches(self) -> Iterator[Batch]:
        """All pieces once, in a fixed order, packed the same way every time; the last batch may have fewer rows.

        Every rank gets all of them: sums need no reduction.
        """
        rows = pack(self.pieces.lengths, self.max_len)
        for start in range(0, len(rows), self.rows):
            yield self._batch(rows[start : start + self.rows])

    def state_dict(self) -> dict[str, Any]:
        """Where the next batch begins, as plain numbers."""
        return {"epoch": self.epoch, "window": self.window, "row": self.row, "data": self._fingerprint()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken. Raises UserError when data, seed or row length are not the same."""
        if state["data"] != self._fingerprint():
            raise UserError("the data, the seed or max_len changed since the checkpoint; start a new run.")
        self.epoch, self.window, self.row = int(state["epoch"]), int(state["window"]), int(state["row"])

    def _fingerprint(self) -> str:
        lengths = self.pieces.lengths
        facts = [self.seed, self.max_len, len(lengths), int((lengths * np.arange(1, len(lengths) + 1)).sum())]
        return files.digest(facts)[:16]
