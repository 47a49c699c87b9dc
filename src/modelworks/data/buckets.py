"""Buckets: examples of like length in one padded batch, for objectives whose rows are one example each.

    a window, shuffled      4 9 3 40 21 8 3 24 9 41 4 8 5 24 4 ...
    sorted and cut          41 40 | 24 24 21 | 9 9 8 8 | 5 4 4 4 3 3     at most `positions` places (rows x longest)
    and shuffled again      24 24 21 | 5 4 4 4 3 3 | 41 40 | 9 9 8 8     the order of batches

Where examples may share a row (language models), packing (`loader`) wastes less and every step is alike; here a batch
of short examples holds more of them than one of long ones, and `weight` says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from modelworks.base.errors import UserError
from modelworks.base.protocols import Batch

from .ahead import Ahead
from .loader import Pieces
from .order import WINDOW, Group, Stream
from .packing import IGNORED, pad

MIXED = 64  # batches among which examples are put together by length: little padding, still other neighbours each epoch


def alike(lengths: np.ndarray, positions: int, most: int = 0) -> list[Group]:
    """Indices of `lengths` in groups of like length, the longest first: every index once.

    A group's size times its longest is at most `positions`, its size at most `most` (0: no limit); a length above
    `positions` stands alone. A small rest is shared with the group before it.
    """
    order = np.argsort(-lengths, kind="stable").tolist()
    groups: list[Group] = []
    start = 0
    while start < len(order):
        size = max(1, positions // max(1, int(lengths[order[start]])))
        size = min(size, most) if most else size
        groups.append(order[start : start + size])
        start += size
    if len(groups) > 1 and 2 * len(groups[-1]) < len(groups[-2]):
        both = groups[-2] + groups.pop()
        groups[-1:] = [both[: (len(both) + 1) // 2], both[(len(both) + 1) // 2 :]]
    return groups


def padded(pieces: Pieces, fill: int) -> Callable[[Group], Batch]:
    """Makes a batch of pieces, one a row, padded to its longest: `tokens`, `labels`, `documents` (1, padding is 0).

    `weight` is how many labels are not -100.
    """

    def make(group: Group) -> Batch:
        laid = pad([pieces.piece(i) for i in group], fill)
        tokens, labels, documents = (torch.from_numpy(column) for column in laid)
        weight = int(np.count_nonzero(laid[1] != IGNORED))
        return Batch({"tokens": tokens, "labels": labels, "documents": documents}, weight, [[i] for i in group])

    return make


class Buckets:
    """Endless iterator of what `make` gives for groups of examples of like length, one group a rank and step.

    `lengths` int64 [n]; `positions` and `most` as for `alike`. All examples come once an epoch; order and place to
    resume depend on neither ranks nor workers (`order.Stream`). Raises UserError when there is no example.
    """

    def __init__(
        self,
        lengths: np.ndarray,
        make: Callable[[Group], Batch],
        positions: int,
        seed: int,
        most: int = 0,
        rank: int | None = None,
        world: int | None = None,
        workers: int = 0,
    ) -> None:
        if not len(lengths):
            raise UserError("there is no example to learn from; check the data.")
        self.lengths, self.make, self.positions, self.most = lengths, make, positions, most
        size = max(1, positions // max(1, int(lengths.mean())))
        window = min(WINDOW, MIXED * (min(size, most) if most else size))
        facts = (positions, most)
        self.stream = Stream(lengths, self._groups, seed, 1, rank, world, facts, window)
        self._ahead = Ahead(self.stream, lambda groups: make(groups[0]), workers)

    def _groups(self, lengths: np.ndarray) -> list[Group]:
        return alike(lengths, self.positions, self.most)

    @property
    def padding(self) -> float:
        """Share of the first epoch's places that hold no token."""
        epoch = [group for window in range(self.stream.windows) for group in self.stream.groups(0, window)]
        places = sum(len(group) * int(self.lengths[group].max()) for group in epoch)
        return 1 - int(self.lengths.sum()) / places

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        return self._ahead.next()

    def validation_batches(self) -> Iterator[Batch]:
        """All examples once, the longest first, the same way every time, on every rank."""
        yield from map(self.make, self._groups(self.lengths))

    def state_dict(self) -> dict[str, Any]:
        """Where the next batch begins, as plain numbers."""
        return self._ahead.place()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken. Raises UserError when data, seed or batch size are not the same."""
        self._ahead.go(state)
